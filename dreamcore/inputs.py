"""Read images from Pillow images, NumPy arrays and tensors, and explain what is wrong with other input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dreamcore.errors import ImageError, InvalidInput
from dreamcore.images import Photograph, from_pillow

__all__ = ["ImageLike", "read_image", "read_images", "read_mask"]

ImageLike = Image.Image | NDArray[Any] | Tensor
"""A Pillow image; an array (H, W, 3) of uint8, or of floats in [0, 1]; or a tensor (3, H, W) of such
values."""


def read_images(
    image: ImageLike | Sequence[ImageLike], name: str, max_pixels: int
) -> tuple[dict[str, Photograph], bool]:
    """Read one image or several.

    Args:
        image: one image, a list or tuple of images of any sizes, or a tensor `(B, 3, H, W)`.
        name: the name of the argument in messages.
        max_pixels: images with more pixels are shrunk to at most this many.

    Returns:
        The images in their order, each with its name, such as `image` or `image[2]`; and whether several were given.

    Raises:
        InvalidInput: the argument is empty, or one image has a wrong type, shape, dtype or range.
        ImageError: the file behind a Pillow image cannot be decoded.
    """
    if isinstance(image, Tensor) and image.ndim == 4:
        image = list(image)
    if not isinstance(image, (list, tuple)):
        return {name: read_image(image, name, max_pixels)}, False
    if not image:
        raise InvalidInput(f"{name} is empty: give at least one image")
    named = {f"{name}[{number}]": each for number, each in enumerate(image)}
    return {each: read_image(one, each, max_pixels) for each, one in named.items()}, True


def read_image(image: object, name: str, max_pixels: int) -> Photograph:
    """Read one image of any kind, see `ImageLike`.

    Raises:
        InvalidInput: the image has a wrong type, shape, dtype or range.
        ImageError: the file behind a Pillow image cannot be decoded.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image, name, max_pixels)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise InvalidInput(f"{name} has the shape {tuple(image.shape)}: {_tensor_remedy(image)}")
        return _from_numbers(_to_numpy(image, name).transpose(1, 2, 0), name, max_pixels)
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise InvalidInput(f"{name} has the shape {image.shape}: {_array_remedy(image)}")
        return _from_numbers(image, name, max_pixels)
    raise InvalidInput(f"{name} is a {type(image).__name__}: {_type_remedy(image)}")


def read_mask(mask: object, name: str, max_pixels: int) -> Photograph:
    """Read a mask: any image, or an array or tensor `(H, W)` of booleans, uint8, or floats in [0, 1].

    Raises:
        InvalidInput: the mask has a wrong type, shape, dtype or range.
        ImageError: the file behind a Pillow image cannot be decoded.
    """
    if isinstance(mask, (np.ndarray, Tensor)):
        values = _to_numpy(mask, name) if isinstance(mask, Tensor) else mask
        if values.ndim == 3 and values.shape[0] == 1 and isinstance(mask, Tensor):
            values = values[0]
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * np.uint8(255)
        if values.ndim == 2:
            return _from_numbers(np.repeat(values[..., None], 3, axis=2), name, max_pixels)
    return read_image(mask, name, max_pixels)


def _from_pillow(image: Image.Image, name: str, max_pixels: int) -> Photograph:
    if not image.width * image.height:
        raise InvalidInput(f"{name} has no pixels ({image.width}x{image.height}): give an image with pixels")
    try:
        return from_pillow(image, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(error.kind, f"{name}: {error}") from error


def _from_numbers(values: NDArray[Any], name: str, max_pixels: int) -> Photograph:
    """Read numbers (H, W, 3): uint8, or floats in [0, 1], which are rounded to 8 bits."""
    if not values.size:
        raise InvalidInput(f"{name} has no pixels (shape {values.shape}): give an image with pixels")
    if np.issubdtype(values.dtype, np.floating):
        values = _to_8_bits(values, name)
    if values.dtype != np.uint8:
        raise InvalidInput(f"{name} has the dtype {values.dtype}: give uint8 (0 to 255), or floats in [0, 1]")
    return from_pillow(Image.fromarray(np.ascontiguousarray(values)), max_pixels=max_pixels)


def _to_8_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise InvalidInput(f"{name} contains NaN or infinity: give floats in [0, 1]")
    if low < 0 or high > 1:
        remedy = "divide it by 255" if low >= 0 and high <= 255 else "scale it"
        raise InvalidInput(f"{name} has values from {low:g} to {high:g}, but floats must be in [0, 1]: {remedy}")
    pixels: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return pixels


def _to_numpy(tensor: Tensor, name: str) -> NDArray[Any]:
    if tensor.is_meta:
        raise InvalidInput(f"{name} is on the meta device and has no values: give a tensor with values")
    tensor = tensor.detach().cpu()
    values: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return values


def _tensor_remedy(image: Tensor) -> str:
    shape = "give (3, H, W), or (B, 3, H, W) for several images"
    return f"{shape}; use permute(2, 0, 1)" if image.ndim == 3 and image.shape[2] == 3 else shape


def _array_remedy(image: NDArray[Any]) -> str:
    if image.ndim == 4:
        return "give list(array) for several images"
    if image.ndim == 3 and image.shape[0] == 3:
        return "give (H, W, 3); use array.transpose(1, 2, 0)"
    return "give (H, W, 3), or PIL.Image.fromarray(array) for gray or transparent images"


def _type_remedy(image: object) -> str:
    if isinstance(image, (str, bytes)) or hasattr(image, "__fspath__"):
        return "open it first, with PIL.Image.open"
    if isinstance(image, (list, tuple)):
        return "give one image here"
    return "give a PIL image, a NumPy array (H, W, 3) or a tensor (3, H, W)"
