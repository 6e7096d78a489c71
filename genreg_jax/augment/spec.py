"""Augmentation as a string in a config: `"flip+crop(4)+randaugment(2,9)"`.

    spec = "none" | term ("+" term)*
    term = name | name "(" number ("," number)* ")"

Terms are applied from left to right; spaces do not matter.

    flip                            mirrors left to right with probability one half
    crop(padding)                   reflects the border; an eighth of the shorter side by default
    random_resized_crop(least)      a box of at least this share of the area, enlarged; 0.08
    shift(padding)                  the same with a black border: small moves of digits
    affine(strength)                at 1, the default: 10 degrees, 1/8 of the side, shear 0.1
    cutout(size)                    half of the shorter side by default
    randaugment(num_ops,magnitude)  2 operations of magnitude 9 by default, of 30
    trivialaugment                  one operation of random magnitude
"""

import difflib
import re

import jax
import jax.numpy as jnp
import numpy as np

from genreg_jax.augment import transforms
from genreg_jax.augment.ops import check_images
from genreg_jax.checks import check_number
from genreg_jax.errors import UserError


def make(spec, *, image_shape, magnitude=None):
    """Builds the augmentation that a string describes; the grammar is at the top of this module.

    Args:
      spec: such as `"none"`, `"flip+crop"` or `"shift(1)+affine(0.5)+cutout(8)"`.
      image_shape: `(H, W, C)`; crops and cutouts without a number scale with it.
      magnitude: of its `randaugment`, instead of the one that the spec has; it may be traced.

    Returns:
      A function `augment(key, x, indices=None) -> x` of images `[B, H, W, C]` in `[0, 1]`, to be
      called under `jit`. Each term draws from its own key, `fold_in(key, position)`.

    Raises:
      UserError: the spec does not parse, names an unknown term, has a number that is not allowed
        for this image shape, or `image_shape` is not that of an image; or `magnitude` is given for
        a spec without `randaugment`.

    Gradients flow through the returned function to `x`, and to `magnitude`.

    Example:
      >>> augment = make("flip+crop+cutout(2)", image_shape=(8, 8, 1))
      >>> augment(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
      (2, 8, 8, 1)
    """
    terms = _split(spec)
    image_shape = _check_image_shape(image_shape, any_channels=not terms)
    if magnitude is not None and not any(map(_is_randaugment, terms)):
        raise UserError(
            f"magnitude is given for the augmentation {spec!r}; allowed is one with randaugment, "
            "whose magnitude it is."
        )
    steps = [_build(term, spec, image_shape, magnitude) for term in terms]

    def augment(key, x, indices=None):
        x = check_images(x, any_channels=image_shape[-1] not in (1, 3))
        if x.shape[1:] != image_shape:
            raise ValueError(
                f"x has images of shape {x.shape[1:]}, but the augmentation {spec!r} was made "
                f"for {image_shape}."
            )
        for position, step in enumerate(steps):
            x = step(jax.random.fold_in(key, position), x, indices=indices)
        return x

    try:  # a wrong number should be found now, not in the first training step
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        jax.eval_shape(lambda x: augment(jax.random.key(0), x), images)
    except ValueError as error:
        raise UserError(f"The augmentation {spec!r} cannot be used: {error}") from None
    return augment


def magnitude_of(spec):
    """The magnitude of the one `randaugment` of a spec, None where there is not one.

    Raises:
      UserError: a `randaugment` that does not parse.

    Example:
      >>> magnitude_of("flip+randaugment(1,5)"), magnitude_of("randaugment"), magnitude_of("flip")
      (5.0, 9.0, None)
    """
    found = [term for term in _split(spec) if _is_randaugment(term)]
    if len(found) != 1:
        return None
    _, numbers = _parse(found[0], spec)
    return float(_both_numbers(*numbers)[1])


def with_magnitude(spec, magnitude):
    """The spec with another magnitude of its `randaugment`.

    Example:
      >>> with_magnitude("flip+randaugment(1,5)", 7.25)
      'flip+randaugment(1,7.25)'
      >>> with_magnitude("randaugment", 1.00033e-05)
      'randaugment(2,0.0000100033)'
    """
    number = np.format_float_positional(  # the grammar knows no exponents
        magnitude, precision=6, unique=False, fractional=False, trim="-"
    )
    terms = _split(spec)
    for place, term in enumerate(terms):
        if _is_randaugment(term):
            num_ops, _ = _both_numbers(*_parse(term, spec)[1])
            terms[place] = f"randaugment({num_ops},{number})"
    return "+".join(terms)


# Terms ------------------------------------------------------------------------------------------


def _crop(image_shape, padding=None):
    padding = _eighth(image_shape) if padding is None else padding
    return _bind(transforms.crop, padding=padding)


def _shift(image_shape, padding=None):
    padding = _eighth(image_shape) if padding is None else padding
    return _bind(transforms.crop, padding=padding, mode="zero")


def _random_resized_crop(image_shape, least=0.08):
    return _bind(transforms.random_resized_crop, least=least)


def _affine(image_shape, strength=1.0):
    check_number("strength", strength)
    return _bind(
        transforms.affine, degrees=10 * strength, translate=strength / 8, shear=strength / 10
    )


def _cutout(image_shape, size=None):
    return _bind(transforms.cutout, size=min(image_shape[:2]) // 2 if size is None else size)


def _both_numbers(num_ops: float = 2, magnitude: float = 9):
    """Those of a `randaugment`, of which a spec may leave some out."""
    return num_ops, magnitude


def _randaugment(image_shape, *numbers):
    num_ops, magnitude = _both_numbers(*numbers)
    return _bind(transforms.randaugment, num_ops=num_ops, magnitude=magnitude)


# name -> (builder, how many numbers it takes)
_TERMS = {
    "flip": (lambda image_shape: transforms.flip, 0),
    "crop": (_crop, 1),
    "random_resized_crop": (_random_resized_crop, 1),
    "shift": (_shift, 1),
    "affine": (_affine, 1),
    "cutout": (_cutout, 1),
    "randaugment": (_randaugment, 2),
    "trivialaugment": (lambda image_shape: transforms.trivialaugment, 0),
}
_MOST_TERMS = 32
_TERM = re.compile(r"([a-z_0-9]+)(?:\(([^()]*)\))?")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_ALLOWED = (
    "allowed: 'none', or terms joined by '+' from flip, crop(padding), "
    "random_resized_crop(least), shift(padding), affine(strength), cutout(size), "
    "randaugment(num_ops,magnitude) and trivialaugment, "
    "such as 'flip+crop(4)+randaugment(2,9)'."
)


def _bind(transform, **settings):
    return lambda key, x, *, indices: transform(key, x, indices=indices, **settings)


def _eighth(image_shape):
    return max(1, min(image_shape[:2]) // 8)


def _split(spec):
    if not isinstance(spec, str) or not spec.strip():
        raise UserError(f"The augmentation is {spec!r}; {_ALLOWED}")
    terms = re.sub(r"\s", "", spec).split("+")
    if len(terms) > _MOST_TERMS:
        raise UserError(
            f"The augmentation {spec[:60]!r}... has {len(terms)} terms; at most {_MOST_TERMS} are "
            "compiled in a reasonable time."
        )
    return [] if terms == ["none"] else terms


def _is_randaugment(term):
    return term.partition("(")[0] == "randaugment"


def _build(term, spec, image_shape, magnitude):
    name, values = _parse(term, spec)
    if magnitude is not None and name == "randaugment":
        values = [_both_numbers(*values)[0], magnitude]
    try:
        return _TERMS[name][0](image_shape, *values)
    except ValueError as error:
        raise UserError(f"The augmentation {spec!r} cannot be used: {error}") from None


def _parse(term, spec):
    """The name of a term and its numbers."""
    match = _TERM.fullmatch(term)
    name = match.group(1) if match else term
    if name not in _TERMS:
        hint = _did_you_mean(name, _TERMS)
        if all(part in _TERMS for part in name.split("_")):
            hint = f"did you mean {name.replace('_', '+')!r}? "
        raise UserError(f"Unknown term {term!r} in the augmentation {spec!r}; {hint}{_ALLOWED}")

    _, most = _TERMS[name]
    numbers = match.group(2).split(",") if match and match.group(2) else []
    if len(numbers) > most or not all(_NUMBER.fullmatch(number) for number in numbers):
        expected = f"at most {most}" if most else "no"
        raise UserError(
            f"The term {term!r} in the augmentation {spec!r} takes {expected} numbers in its "
            f"brackets; {_ALLOWED}"
        )
    return name, [float(n) if "." in n else int(n) for n in numbers]


def _check_image_shape(image_shape, *, any_channels):
    shape = tuple(image_shape) if isinstance(image_shape, (tuple, list)) else ()
    whole = all(isinstance(n, int) and n > 0 for n in shape)
    if len(shape) != 3 or not whole or (shape[-1] not in (1, 3) and not any_channels):
        raise UserError(
            f"image_shape is {image_shape!r}; allowed: (height, width, channels) with 1 or 3 "
            "channels, or any number of them with the augmentation 'none'."
        )
    return shape


def _did_you_mean(name, names):
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}? " if close else ""
