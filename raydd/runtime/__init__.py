"""The only rooms that import ray or mlflow: runners, pipeline, tracking."""
