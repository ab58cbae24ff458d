"""What tests have AWS on this machine train and serve."""

import io
import tarfile

HERE = {"LocationConstraint": "us-west-2"}
ROLE = "arn:aws:iam::000000000000:role/r"
IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6.0-cpu-py312"
SERVING_IMAGE = IMAGE.replace("training", "inference")
TRAIN = """
import os, time
print("on", os.environ["SM_CURRENT_INSTANCE_TYPE"], open(os.environ["SM_CHANNEL_TRAIN"] + "/a.txt").read(), flush=True)
for number in range(6):
    print("step", number, flush=True)
    time.sleep(0.5)
open(os.environ["SM_MODEL_DIR"] + "/weights.txt", "w").write("weights")
"""
SERVE = """
def model_fn(model_dir): return open(model_dir + "/weights.txt").read()
def input_fn(body, content_type): return bytes(body)
def predict_fn(body, model): return (model + ":").encode() + body if body != b"bad" else 1 / 0
def output_fn(answer, accept): return answer, accept
"""


def packed(**files):
    """The bytes of an archive of texts by their names, in which a dot is written __ and a slash ___."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name.replace("___", "/").replace("__", "."))
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


def training_request(bucket, name):
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{bucket}/data/", "S3DataDistributionType": "FullyReplicated"}
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        "RoleArn": ROLE,
        "InputDataConfig": [{"ChannelName": "train", "DataSource": {"S3DataSource": source}}],
        "OutputDataConfig": {"S3OutputPath": f"s3://{bucket}/out"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "HyperParameters": {
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": f"s3://{bucket}/source.tar.gz",
        },
        "Tags": [{"Key": "k", "Value": "v"}],
    }
