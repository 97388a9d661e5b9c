"""Pictures scaled down and put into a page as text."""

from __future__ import annotations

import base64
import io

from PIL import Image

THUMBNAIL_SIDE = 360  # pixels
_EXACT_BELOW = 20_000  # bytes of a PNG; such drawings stay exact


def to_data_uri(picture: Image.Image, side: int = THUMBNAIL_SIDE, quality: int = 85) -> str:
    """An RGB picture of at most `side` by `side` pixels as a `data:` address, as PNG or JPEG."""
    picture = picture.copy()
    picture.thumbnail((side, side))
    encodings = []
    for form, options in (("png", {"optimize": True}), ("jpeg", {"quality": quality})):
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        encodings.append((len(buffer.getvalue()), form, buffer.getvalue()))
        if form == "png" and len(buffer.getvalue()) < _EXACT_BELOW:
            break
    _, form, data = min(encodings)
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"
