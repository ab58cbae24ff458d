"""Starts the training toolkit on one host: ``python training_launcher.py`` with SAGEMAKER_* and FASTMAKER_MASTER_PORT.

The toolkit lets the hosts of a job meet at port 7777. Here they share a machine with those of other jobs, and each
job has a port of its own.
"""

import os
import sys

sys.path.pop(0)  # this folder, whose module names are ours alone

from sagemaker_pytorch_container import training
from sagemaker_training import torch_distributed
from sagemaker_training.cli.train import main

if __name__ == "__main__":
    training.MASTER_PORT = torch_distributed.MASTER_PORT = os.environ["FASTMAKER_MASTER_PORT"]
    main()
