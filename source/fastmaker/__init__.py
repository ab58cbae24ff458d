"""Train fastai vision models and serve them as pure PyTorch in the managed SageMaker containers.

One direction: ``data -> learner -> bundle`` to train, ``bundle -> serving`` to answer. Only ``data``, ``mask_data``,
``learner``, ``segmentation`` and ``report`` use fastai, and only when they are called: serving needs torch,
torchvision, Pillow and NumPy.
"""

__version__ = "0.1.0"
