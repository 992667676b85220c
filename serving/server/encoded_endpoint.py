"""The control side of the model for encoded photos."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract import encoded_name
from serving.access import Access
from serving.server.control import Endpoint
from serving.wire import infer_encoded


class EncodedEndpoint(Endpoint):
    """As Endpoint, of `<model>-encoded`: loads it, asks it golden images as files, and heals it.

    It follows what `<model>` serves, so there is nothing to switch.
    """

    def __init__(self, server: Access | str, *, model: str = "products", **timeouts: Any) -> None:
        super().__init__(server, model=encoded_name(model), **timeouts)
        self.asked = model

    def _ask(self, images: NDArray[np.uint8], version: int) -> tuple[NDArray, NDArray]:
        """Ids and probabilities (B, k) of the version that serves, which is to be this one."""
        answer = infer_encoded(
            self._client,
            [_file(image) for image in images],
            url=self.url,
            model=self.asked,
            outputs=("ids", "probs"),
            timeout_s=self.answer_timeout_s,
        )
        return answer.arrays["ids"], answer.arrays["probs"]


def _file(image: NDArray[np.uint8]) -> bytes:
    """A PNG, which loses nothing."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
