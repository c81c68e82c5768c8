"""The server of ``mrmodel serve``: REST, the web page, uploads, jobs (docs/howto/serve.md)."""
