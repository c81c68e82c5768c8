"""The server: videos, searches, exports and feedback over HTTP, and a web page for people."""
