"""What else is made of a bundle: an ONNX file, Triton's models, the fastai Learner rebuilt."""
