import json
from pathlib import Path

import keras

from align_keras.files import atomic_file


class Checkpoints:
    """The checkpoints of a working directory, newest last.

    A checkpoint is one file with the weights and the optimizer's state.
    `state.json` names the newest and holds the states of random generators.
    It is written last, so that an interruption leaves the checkpoint before.

    Args:
        workdir: string or `pathlib.Path`. The directory of the run.
        keep: int. Number of checkpoints to keep. Defaults to `2`.
    """

    def __init__(self, workdir, keep=2):
        self.directory = Path(workdir) / "checkpoints"
        self.keep = keep

    @property
    def _state_path(self):
        return self.directory / "state.json"

    def state(self):
        """Return the state that was saved last.

        Returns:
            A dict with `"step"` (0 for a fresh run) and whatever else was
            passed to `save`.
        """
        if not self._state_path.is_file():
            return {"step": 0}
        return json.loads(self._state_path.read_text())

    def save(self, model, step, **state):
        """Save the model and its optimizer after `step` steps."""
        with atomic_file(self._path(step)) as temporary:
            model.save_weights(temporary, overwrite=True)
        with atomic_file(self._state_path) as temporary:
            random = [
                keras.ops.convert_to_numpy(variable).tolist()
                for variable in _random(model)
            ]
            state = {"step": step, "random": random, **state}
            temporary.write_text(json.dumps(state, default=float))
        for path in sorted(self.directory.glob("step-*"))[: -self.keep]:
            path.unlink()

    def restore(self, model):
        """Load the newest checkpoint into a compiled model.

        Returns:
            int. The number of steps that it has behind it.
        """
        state = self.state()
        step = state["step"]
        if step:
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            model.load_weights(self._path(step))
            for variable, value in zip(
                _random(model), state["random"], strict=True
            ):
                variable.assign(value)
        return step

    def _path(self, step):
        return self.directory / f"step-{step:09d}.weights.h5"


def _random(model):
    """The states of the random generators, which a weight file leaves out."""
    return [v for v in model.variables if v.path.endswith("generator_state")]
