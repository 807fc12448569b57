"""NIfTI volumes of unknown origin: refused from their header where they are not what they claim, loaded one at a time."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from evenhand.cohorts.images import BadImage, inside

MAX_VOXELS = 100_000_000  # a BraTS volume has 9 million
# what nibabel, gzip and NumPy raise on damaged files
_PARSE_ERRORS = (ImageFileError, HeaderDataError, WrapStructError, zlib.error, OSError, EOFError, ValueError, TypeError, OverflowError)


def read_volume(folder: Path, name: str) -> np.ndarray:
    """A three-dimensional NIfTI-1 volume (left, posterior, superior) below ``folder``, from ``.nii`` or ``.nii.gz``.

    Axes are brought into that order by the file's own affine, so ``volume[:, :, z].T`` is an axial slice as radiologists see it: the
    patient's right on the left, the front above. Nothing but numbers is read: nibabel's parser of this one format, no pickles.

    Raises:
        BadImage: missing, truncated, damaged, not three-dimensional, not finite, or more than ``MAX_VOXELS`` by its header.
    """
    path = inside(folder, name)
    if not path.is_file():
        raise BadImage("no such file")
    try:
        image = nib.Nifti1Image.from_filename(path)
        shape = tuple(int(side) for side in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 1:
            raise BadImage(f"shape {image.shape} is no volume of three dimensions")
        if math.prod(shape) > MAX_VOXELS:
            raise BadImage(f"header claims {math.prod(shape):,} voxels, more than {MAX_VOXELS:,}; not read")
        if image.get_data_dtype().kind not in "uif":
            raise BadImage(f"voxels of type {image.get_data_dtype()} are no grey values")
        voxels = np.asarray(image.dataobj).reshape(shape)
        turned = nib.apply_orientation(voxels, _to_lps(image.affine))
    except _PARSE_ERRORS as error:
        raise BadImage(f"truncated or damaged NIfTI ({_brief(error)}); restore the file") from None
    if not np.isfinite(turned).all():
        raise BadImage("voxels that are not finite")
    return turned


def _to_lps(affine: np.ndarray) -> np.ndarray:
    """How the file's axes are turned so that they run to the left, to the back and upwards."""
    return nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(("L", "P", "S")))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
