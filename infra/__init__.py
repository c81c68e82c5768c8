"""What the pipeline runs on: local servers, containers, work pools."""
