"""Training, with fastai: arguments -> samples -> Learner -> bundle and report."""
