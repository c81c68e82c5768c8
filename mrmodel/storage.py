"""Objects by key, in S3 or in a folder, with writes that may depend on what is there."""
