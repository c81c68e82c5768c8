"""The record of what ran: MLflow is imported here and nowhere else."""
