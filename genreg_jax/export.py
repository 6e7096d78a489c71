"""A trained classifier as files that need nothing of this package.

    python -m genreg_jax.export --workdir=RUN --output=DIR

writes the prediction as StableHLO, for any number of images and for CPU, CUDA and TPU, with the
preprocessing and the parameters inside; the parameters once more as safetensors, for other
frameworks; and a description of both. `README.md` in the folder says how to load them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from genreg_jax.checks import path_of
from genreg_jax.contract import to_float
from genreg_jax.door import leave, through
from genreg_jax.errors import UserError
from genreg_jax.fingerprints import named
from genreg_jax.logs import check_new_folder, provenance, to_json, write_atomically
from genreg_jax.predict import Run, load, say_if_unfinished

PLATFORMS = ("cpu", "cuda", "tpu")
_README = """# {name}

A classifier of {classes} classes for images of {height} x {width} pixels and {channels} channels,
trained with genreg_jax. `model.json` has the class names and the rest of what is known.

`model.stablehlo` is the prediction, with preprocessing and parameters. With the packages jax and
flatbuffers:

```python
import json
import numpy as np
from jax import export

model = export.deserialize(open("model.stablehlo", "rb").read())
about = json.load(open("model.json"))
images = np.zeros((5, {height}, {width}, {channels}), np.uint8)  # any number of them, 0 to 255
probabilities, embedding = model.call(images)
print([about["class_names"][i] for i in np.argmax(probabilities, axis=1)])
```

Pictures of another size are brought to this one by `{resize}` ({how}), with a bicubic filter; with
the package pillow, as the run did it:

```python
import numpy as np
from PIL import Image, ImageOps

picture = ImageOps.exif_transpose(Image.open("picture.png"))
picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
picture = ImageOps.{fit}(picture, ({width}, {height}), method=Image.Resampling.BICUBIC)
images = np.asarray(picture.convert("{mode}")).reshape(1, {height}, {width}, {channels})
```

A transparent picture is laid on white before that, and one of 16 bits brought to 8.

`parameters.safetensors` has the parameters and running statistics under the names that `model.json`
lists, in float32:

```python
from safetensors.numpy import load_file

tensors = load_file("parameters.safetensors")
```
"""
_HOW = {
    "crop": "the short side is scaled, the centre cut out",
    "pad": "the long side is scaled, the rest is black",
}


def export(run: Run, output: str | Path) -> Path:
    """Writes a run's classifier into a folder, which is made.

    Args:
      run: from `genreg_jax.load`.
      output: a new or empty folder.

    Returns:
      The folder.

    Raises:
      UserError: it is not empty, cannot be written, or the model cannot be exported.
    """
    output = path_of(output)
    check_new_folder(output)
    from safetensors.numpy import save

    def predict(images):
        x = to_float(images)
        outputs, _ = run.model.apply(run.params, run.model_state, x, rng=None, train=False)
        return jax.nn.softmax(outputs.logits), outputs.embedding

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *run.image_shape), jnp.uint8)
    try:
        program = jax_export.export(jax.jit(predict), platforms=PLATFORMS)(images)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"The model of {str(run.workdir)!r} cannot be exported for any number of images: "
            f"{str(error).splitlines()[0]}."
        ) from None
    tensors = {
        f"{group}/{name}": np.asarray(leaf)
        for group, tree in (("params", run.params), ("model_state", run.model_state))
        for name, leaf in named(tree)
    }
    height, width, channels = run.image_shape
    about = {
        "name": run.config.name,
        "class_names": run.class_names,
        "image_shape": run.image_shape,
        "input": {"images": {"shape": ["batch", *run.image_shape], "dtype": "uint8"}},
        "output": {
            "probabilities": {"shape": ["batch", len(run.class_names)], "dtype": "float32"},
            "embedding": {"shape": ["batch", int(program.out_avals[1].shape[1])]},
        },
        "resize": run.config.data.resize,
        "platforms": PLATFORMS,
        "tensors": {name: [list(a.shape), str(a.dtype)] for name, a in tensors.items()},
        "test_accuracy": (run.summary or {}).get("test_accuracy"),
        **provenance(),
    }
    resize = run.config.data.resize
    readme = _README.format(
        name=run.config.name,
        classes=len(run.class_names),
        height=height,
        width=width,
        channels=channels,
        resize=resize,
        how=_HOW[resize],
        fit={"crop": "fit", "pad": "pad"}[resize],
        mode="L" if channels == 1 else "RGB",
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "model.stablehlo", bytes(program.serialize()))
        write_atomically(output / "parameters.safetensors", save(tensors))
        write_atomically(output / "README.md", readme)
        write_atomically(output / "model.json", json.dumps(to_json(about), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{str(output)!r} could not be written ({error.strerror}).") from None
    return output


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line of this module.

    Args:
      argv: Arguments; those of the process by default.

    Returns:
      The exit status: 0, or 1 after a message about what the user gave.
    """
    parser = argparse.ArgumentParser(
        prog="python -m genreg_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="of a run that trained a classifier")
    parser.add_argument("--output", required=True, help="new folder")
    args = parser.parse_args(argv)

    def command() -> None:
        run = load(args.workdir)
        say_if_unfinished(run)
        print(export(run, args.output))

    return through(command, compiles=True)


if __name__ == "__main__":
    leave(main())
