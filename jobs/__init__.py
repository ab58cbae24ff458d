"""What runs on the user's machine: job scripts on the SageMaker Python SDK, and local mode without Docker."""
