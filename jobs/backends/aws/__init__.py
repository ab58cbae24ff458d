"""The job scripts on AWS: instance types ml.*, through the SageMaker Python SDK's own Session."""
