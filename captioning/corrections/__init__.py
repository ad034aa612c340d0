"""Corrections of captions: what people or other tools say instead of the model, in a layer of its own.

edits.py     an edit: text, slots, wrong or reset
record.py    a correction as it is kept, and its line in the file
lines.py     where the lines of a history are, and what each is about, in columns
current.py   the changes in effect of one moment, read when they are asked for
store.py     the append-only history of the corrections of one template (`Corrections`)
waiting.py   changes of an import that are checked and not saved yet, in a temporary file
layer.py     captions with their corrections applied, as a table
stage.py     the stage ``correct``, between caption and audit, if caption.corrections=use
"""

from captioning.corrections.edits import Edit, EditError
from captioning.corrections.record import Correction, ModelCaption
from captioning.corrections.store import ConflictError, Corrections

__all__ = ["ConflictError", "Correction", "Corrections", "Edit", "EditError", "ModelCaption"]
