"""Fine-tuning that is interrupted in either of its phases gives the same result as uninterrupted."""

import hashlib
import threading

import pytest

from fastmaker.training import callbacks, checkpoint, data, learner, schedule
from fastmaker.training.arguments import parse_args


def names(folder):
    return sorted(file.name for file in folder.iterdir())


pytestmark = pytest.mark.training
EPOCHS = 3


def photo_learner(photos):
    """A small untrained ResNet with augmentation, dropout and two parameter groups, as the entry point makes it."""
    from fastai.vision.all import set_seed

    set_seed(5)
    samples = data.read(photos)
    dls = data.dataloaders(samples, "RGB", (32, 32), "crop", batch_size=8, augment=True, workers=0)
    return learner.create(dls, samples, ARGUMENTS, pretrained=False)


ARGUMENTS = parse_args(["--train", "photos", "--arch", "resnet18", "--image-size", "32", "--epochs", str(EPOCHS)])


def fine_tune(learn, cbs, done=0, batch=0, fit=None):
    learn.add_cb(callbacks.MetricLog())
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(cbs):
        if fit:
            fit(EPOCHS, base_lr=0.01)
        else:
            schedule.fit(learn, schedule.plan(ARGUMENTS, 0.01), done, batch)
    return learn


def figures(learn):
    """All that the Recorder knows and the weights' digest."""
    recorder = learn.recorder
    record = [list(map(list, recorder.values)), list(map(float, recorder.losses)), recorder.lrs, list(recorder.iters)]
    digest = hashlib.sha256()
    for tensor in learn.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return record, digest.hexdigest()


@pytest.fixture(scope="module")
def uninterrupted_figures(photos):
    return figures(fine_tune(photo_learner(photos), callbacks.Position(3)))


class Killed(BaseException):
    pass


def interruption(epochs, interrupt):
    """A callback that calls `interrupt` in the middle of the epoch that follows `epochs` others."""
    from fastai.vision.all import Callback

    class Interrupt(Callback):
        order = 78  # before SaveCheckpoints

        def after_batch(self):
            if self.training and self.learn.position.done == epochs and self.iter == 1:
                interrupt()

    return Interrupt()


def go_on(photos, folder):
    _, resumed, _ = checkpoint.newest(folder)
    learn = photo_learner(photos)
    checkpoint.restore(learn, resumed)
    place = (resumed["epoch"], resumed["batch"])
    cbs = [callbacks.Position(3, *place), callbacks.SaveCheckpoints(folder, {}, threading.Event(), resumed)]
    return place, fine_tune(learn, cbs, *place)


def kill():
    raise Killed


@pytest.mark.parametrize(
    "epochs", [1, *(pytest.param(epochs, marks=pytest.mark.slow) for epochs in range(2, EPOCHS + 1))]
)
def test_fine_tuning_that_is_killed_in_either_phase_ends_as_if_it_had_not_been(
    photos, tmp_path, uninterrupted_figures, epochs
):
    first = [callbacks.Position(3), callbacks.SaveCheckpoints(tmp_path, {}, threading.Event())]
    with pytest.raises(Killed):
        fine_tune(photo_learner(photos), [*first, interruption(epochs, kill)])
    place, learn = go_on(photos, tmp_path)
    assert place == (epochs, 0)
    assert figures(learn) == uninterrupted_figures
    assert checkpoint.newest(tmp_path)[1]["epoch"] == EPOCHS + 1


@pytest.mark.parametrize(
    "epochs", [0, 1, *(pytest.param(epochs, marks=pytest.mark.slow) for epochs in range(2, EPOCHS + 1))]
)
def test_fine_tuning_that_is_stopped_within_an_epoch_goes_on_there(photos, tmp_path, uninterrupted_figures, epochs):
    stop = threading.Event()
    first = [callbacks.Position(3), callbacks.SaveCheckpoints(tmp_path, {}, stop), interruption(epochs, stop.set)]
    with pytest.raises(SystemExit):
        fine_tune(photo_learner(photos), first)
    assert f"epoch-{epochs:04}-batch-000002.pt" in names(tmp_path)
    place, learn = go_on(photos, tmp_path)
    assert place == (epochs, 2)
    assert figures(learn) == uninterrupted_figures


def test_fine_tuning_is_what_fastai_does(photos, uninterrupted_figures):
    learn = photo_learner(photos)
    assert figures(fine_tune(learn, callbacks.Position(3), fit=learn.fine_tune)) == uninterrupted_figures


def test_each_epoch_has_another_order_of_images(photos):
    from fastai.vision.all import Callback

    orders = []

    class Order(Callback):
        order = 90

        def before_epoch(self):
            orders.append(self.dls.train.rng.random())

    fine_tune(photo_learner(photos), [callbacks.Position(3), Order()])
    assert len(set(orders)) == len(orders) == EPOCHS + 1
