"""Drawing of one person, part by part from far to near (painter's order)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from data.synthetic.bags import bags_in_order
from data.synthetic.canvas import Canvas, Pose, lerp
from data.synthetic.figure import Figure
from data.synthetic.head import draw_hair_back, draw_hair_front, draw_head, draw_hood
from data.synthetic.legs import draw_leg
from data.synthetic.people import Person
from data.synthetic.trunk import draw_arm, draw_neck, draw_pelvis, draw_torso


def draw_person(person: Person, pose: Pose) -> Canvas:
    """Return a transparent canvas with `person` drawn in `pose`."""
    canvas = Canvas(pose, person.body)
    _draw(Figure(person, canvas))
    return canvas


def _draw(figure: Figure) -> None:
    """Draw every part, far to near."""
    canvas = figure.canvas
    order: list[tuple[float, Callable[[], None]]] = [
        (-0.02, partial(draw_pelvis, figure)),
        (0.0, partial(draw_torso, figure)),
        (0.01, partial(draw_neck, figure)),
        (0.03, partial(draw_head, figure)),
    ]
    for leg in figure.legs:
        depth = canvas.depth(leg[1])
        order.append((-0.3 + 0.1 * depth, partial(draw_leg, figure, leg)))
    for arm in figure.arms:
        depth = canvas.depth(lerp(arm[0], arm[2], 0.5))
        key = 0.2 + 0.1 * depth if depth > -0.06 else -0.5
        order.append((key, partial(draw_arm, figure, arm)))
    facing = canvas.cos > -0.15
    behind = -0.6 if facing else 0.05
    if figure.upper == "hoodie":
        order.append((-0.55 if canvas.cos > 0.3 else 0.04, partial(draw_hood, figure)))
    if figure.attributes["hair"] in ("long", "ponytail"):
        order.append((behind + 0.02, partial(draw_hair_back, figure)))
    if figure.attributes["hair"] == "long" and canvas.cos > -0.5:
        order.append((0.1, partial(draw_hair_front, figure)))
    order.extend(bags_in_order(figure, facing=facing))
    for _, part in sorted(order, key=lambda item: item[0]):
        part()
