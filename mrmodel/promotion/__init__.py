"""Which registered model serves: registration, gates, the champion's pointer, rollback."""
