"""Cut the schema of KubeRay's custom resources down to the fields that the manifests in deploy/kuberay use.

    python -m tools.kuberay_schema CRD.yaml ... > tests/golden/kuberay_schema.json

CRD.yaml are ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of github.com/ray-project/kuberay (Apache-2.0). A field
that is not in the result is refused, as `kubectl apply` with strict validation refuses one that is not in the whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

MANIFESTS: Final = Path(__file__).parents[1] / "deploy" / "kuberay"
_KEPT: Final = ("type", "enum", "pattern", "minimum", "maximum", "format", "anyOf", "x-kubernetes-int-or-string")
Schema = dict[str, Any]


def cut(schema: Mapping[str, Any], values: Iterable[Any]) -> Schema:
    """Return the part of `schema` that `values`, the values at its place, use; of objects also what they require."""
    found: Schema = {key: schema[key] for key in _KEPT if key in schema}
    values = list(values)
    if "properties" in schema:
        maps = [value for value in values if isinstance(value, dict)]
        used = {key for value in maps for key in value} & schema["properties"].keys()
        wanted = sorted(used | set(schema.get("required", ())))
        found["properties"] = {
            key: cut(schema["properties"][key], [value[key] for value in maps if key in value]) for key in wanted
        }
        found["required"] = schema.get("required", [])
        found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        inner = [one for value in values if isinstance(value, dict) for one in value.values()]
        found["additionalProperties"] = cut(schema["additionalProperties"], inner)
    if "items" in schema:
        found["items"] = cut(schema["items"], [one for value in values if isinstance(value, list) for one in value])
    return found


def main(paths: Iterable[Path]) -> None:
    """Print kind -> schema of version v1 for the manifests."""
    manifests = [yaml.safe_load(path.read_text()) for path in sorted(MANIFESTS.glob("*.yaml"))]
    result: dict[str, Any] = {"source": "github.com/ray-project/kuberay, Apache-2.0, cut by tools/kuberay_schema.py"}
    for path in paths:
        crd = yaml.safe_load(path.read_text())["spec"]
        kind = crd["names"]["kind"]
        (version,) = (one for one in crd["versions"] if one["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
        result[kind] = cut(schema, [manifest for manifest in manifests if manifest["kind"] == kind])
        # The API server checks these of every object.
        result[kind]["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    sys.stdout.write(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(word) for word in sys.argv[1:])
