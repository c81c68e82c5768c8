"""Infrastructure of the pipeline: local servers, containers, work pools."""
