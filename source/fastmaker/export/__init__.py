"""Other forms of a bundle: an ONNX file, the models of a Triton repository, a fastai Learner."""
