"""Control of the model for encoded photos."""

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
    """Endpoint of `<model>-encoded`: loads and heals it, and sends golden images as PNG files.

    This model follows the versions that `<model>` serves, so it needs no switch. It overrides the hook `Endpoint.ask`.
    """

    def __init__(self, server: Access | str, *, model: str = "products", **timeouts: Any) -> None:
        super().__init__(server, model=encoded_name(model), **timeouts)
        self._decoded_model = model

    def ask(self, images: NDArray[np.uint8], version: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Ids and probabilities, each (B, k), of the current model; `version` cannot be chosen and is not checked."""
        answer = infer_encoded(
            self._client,
            [_file(image) for image in images],
            url=self.url,
            model=self._decoded_model,
            outputs=("ids", "probs"),
            timeout_s=self.answer_timeout_s,
        )
        return answer.arrays["ids"], answer.arrays["probs"]


def _file(image: NDArray[np.uint8]) -> bytes:
    """A lossless PNG of the image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
