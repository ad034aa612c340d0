"""The joints of a synthetic person in a pose."""

from __future__ import annotations

import math

from data.synthetic.canvas import Canvas, Point
from data.synthetic.people import Person


class Figure:
    """One person to draw in one pose: joints, body, clothes and canvas."""

    def __init__(self, person: Person, canvas: Canvas) -> None:
        self.attributes = person.attributes
        self.body = person.body
        self.details = person.details
        self.canvas = canvas
        self.upper = person.attributes["upper_type"]
        self.lower = person.attributes["lower_type"]
        self.carrying = person.attributes["carrying"]
        self.female = person.attributes["gender"] == "female"
        self.bulk = {"t-shirt": 0.004, "shirt": 0.004, "sweater": 0.008, "hoodie": 0.013, "jacket": 0.012,
                     "coat": 0.013}[self.upper] + 0.6 * person.details.ease  # fmt: skip
        self.neck_y = 1.0 - person.body.head
        self.shoulder_y = self.neck_y - 0.045
        self.legs = [self._leg(side) for side in (-1, 1)]
        canvas.drop = min(leg[2][1] for leg in self.legs) - 0.035
        self.arms = [self._arm(side) for side in (-1, 1)]

    def _leg(self, side: int) -> tuple[Point, Point, Point]:
        pose, body = self.canvas.pose, self.body
        hip: Point = (side * (body.hip - body.thigh + 0.006), body.crotch + 0.045, 0.0)
        swing = pose.stride * math.sin(pose.phase + (0 if side > 0 else math.pi))
        lift = pose.stride * 1.5 * max(0.0, math.cos(pose.phase + (0 if side > 0 else math.pi)))
        knee_bend = 0.06 + lift + 0.35 * max(0.0, -swing)
        half = (hip[1] - 0.035) / 2
        lower = swing - knee_bend
        foot_x = side * body.stance
        knee: Point = ((hip[0] + foot_x) / 2, hip[1] - half * math.cos(swing), half * math.sin(swing))
        ankle: Point = (foot_x, knee[1] - half * math.cos(lower), knee[2] + half * math.sin(lower))
        return hip, knee, ankle

    def _arm(self, side: int) -> tuple[Point, Point, Point]:
        pose, body = self.canvas.pose, self.body
        shoulder: Point = (side * (body.shoulder - body.arm * 0.7), self.shoulder_y - 0.02, 0.0)
        bend = pose.arm_bend[0 if side < 0 else 1]
        swing = -0.9 * pose.stride * math.sin(pose.phase + (0 if side > 0 else math.pi))
        out = pose.arm_out
        busy = self.carrying in ("handbag", "suitcase") and side == self.details.bag.side
        if busy:
            swing, bend, out = (-0.42, 0.1, 0.2) if self.carrying == "suitcase" else (0.36, 0.3, 0.18)
        elif pose.gesture == 1 and side != self.details.bag.side:
            swing, bend = 0.35, 1.9
        elif pose.gesture == 2:
            swing, bend, out = -0.25, 0.75, 0.3
        down, ahead = math.cos(swing), math.sin(swing)
        elbow: Point = (shoulder[0] + side * out * 0.17, shoulder[1] - 0.168 * down, 0.168 * ahead)
        fore = swing + bend
        inward = 0.2 if pose.gesture == 2 and not busy else 0.1 * bend
        wrist: Point = (
            elbow[0] + side * (out * 0.08 - inward * 0.14),
            elbow[1] - 0.15 * math.cos(fore),
            elbow[2] + 0.15 * math.sin(fore),
        )
        return shoulder, elbow, wrist
