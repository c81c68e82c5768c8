"""The model registry: versions, gates, promotion, rollback, lineage."""
