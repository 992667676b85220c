"""Label Studio: tasks with predictions, a labelling configuration, and its JSON export.

The products to choose from stand in each task, so 50,000 of them burden no page: the given label, the suggestion, and none.
Any other product is typed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.errors import BadDelivery
from flows.exchange.choice import Choice, choice_of
from flows.exchange.suspects import NO_PRODUCT, Suspect
from models.data.records import short

TASKS, CONFIG = "tasks.json", "labelling.xml"
LABELLING = """\
<View>
  <Image name="photo" value="$image"/>
  <Header value="Given label: $given"/>
  <Choices name="product" toName="photo" value="$choices" choice="single"/>
  <Header value="Another product:"/>
  <TextArea name="other" toName="photo" maxSubmissions="1" editable="true"/>
</View>
"""
LOCAL_FILES = "/data/local-files/?d="  # how Label Studio names files below its own document root


def write(folder: Path, suspects: Sequence[Suspect]) -> None:
    """Writes tasks.json and labelling.xml; images are named as files of Label Studio's local storage."""
    tasks = [_task(folder.name, suspect) for suspect in suspects]
    (folder / TASKS).write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / CONFIG).write_text(LABELLING, encoding="utf-8")


def read(file: Path) -> Iterator[Choice]:
    """Choices of an export in the format JSON: of each task the last annotation that was not cancelled.

    Raises:
        BadDelivery: it is another format, or an annotation contradicts itself.
    """
    tasks = json.loads(file.read_text(encoding="utf-8"))
    for number, task in enumerate(tasks, start=1):
        where = f"{file}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict) or "annotations" not in task:
            raise BadDelivery(
                f"{where}: it has no annotations; export the project of Label Studio as JSON, not JSON-MIN"
            )
        photo = task["data"].get("photo")
        if not isinstance(photo, str):
            raise BadDelivery(
                f"{where}, field data.photo: {short(photo)} is not the id of a photo; keep the exported tasks"
            )
        done = [each for each in task["annotations"] if not each.get("was_cancelled")]
        if done and (chosen := _choice(where, photo, max(done, key=lambda each: str(each.get("updated_at"))))):
            yield chosen


def _task(folder: str, suspect: Suspect) -> dict[str, Any]:
    labels = dict.fromkeys(label for label in (suspect.given, suspect.suggested, NO_PRODUCT) if label)
    task: dict[str, Any] = {
        "data": {
            "image": f"{LOCAL_FILES}{folder}/{suspect.file}",
            "photo": suspect.photo,
            "given": suspect.given,
            "suggested": suspect.suggested,
            "score": suspect.score,
            "version": suspect.version,
            "choices": [{"value": label} for label in labels],
        }
    }
    if suspect.suggested:
        chosen = {
            "from_name": "product",
            "to_name": "photo",
            "type": "choices",
            "value": {"choices": [suspect.suggested]},
        }
        task["predictions"] = [
            {"model_version": f"data version {suspect.version[:12]}", "score": suspect.probability, "result": [chosen]}
        ]
    return task


def _choice(where: str, photo: str, annotation: Mapping[str, Any]) -> Choice | None:
    values = {each.get("from_name"): each.get("value", {}) for each in annotation.get("result", [])}
    typed = [text for text in _texts(values.get("other"), "text") if text.strip()]
    picked = _texts(values.get("product"), "choices")
    if len(typed) > 1 or len(picked) > 1:
        raise BadDelivery(f"{where}: {short(', '.join(typed or picked))} are several products; keep one")
    label = (typed or picked or [""])[0]
    return choice_of(where, photo, kind="", label=label, suggested="", who=_who(annotation.get("completed_by")))


def _texts(value: Mapping[str, Any] | None, key: str) -> list[str]:
    found = (value or {}).get(key) or []
    return [found] if isinstance(found, str) else [str(each) for each in found]


def _who(by: Any) -> str:
    if isinstance(by, dict):
        return str(by.get("email") or by.get("id") or "")
    return f"Label Studio user {by}" if by else ""
