"""params.yaml as typed, validated settings."""
