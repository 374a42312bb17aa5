"""Silhouettes of things for the house; each function draws one product on a scene in one of three shape variants."""

from __future__ import annotations

import numpy as np

from .drawing import METAL, WHITE, WOOD, Scene, Shape, arc, box, curve, ellipse, mirror, polygon, stroke, turned

LEAVES = ((96, 148, 84), (70, 116, 66))


def mug(scene: Scene, variant: int, k: float) -> None:
    profile = [[(0.30, 0.20), (0.78, 0.20)], [(0.30, 0.23), (0.60, 0.20), (0.78, 0.14)], [(0.32, 0.17), (0.55, 0.225), (0.78, 0.17)]][
        variant
    ]
    profile = [(y, r * k) for y, r in profile]
    top, rim = profile[0]
    scene.shadow(0.48, 0.82, 0.25)
    scene.part(ellipse(0.46 + rim, 0.53, 0.13, 0.15), paint="base", holes=[ellipse(0.46 + rim, 0.53, 0.08, 0.095)])
    scene.part(turned(0.46, profile))
    scene.part(ellipse(0.46, top, rim, 0.2 * rim), paint="accent", light="flat")
    scene.part(ellipse(0.46, top + 0.006, rim * 0.88, 0.155 * rim), paint="dark", light="down")


def teapot(scene: Scene, variant: int, k: float) -> None:
    profile = [
        [(0.42, 0.10), (0.60, 0.235), (0.78, 0.13)],
        [(0.40, 0.13), (0.48, 0.20), (0.78, 0.21)],
        [(0.36, 0.11), (0.70, 0.23), (0.79, 0.17)],
    ][variant]
    profile = [(y, r * k) for y, r in profile]
    top, neck = profile[0]
    scene.shadow(0.5, 0.82, 0.28)
    scene.part(arc(0.5 - 0.2 * k, 0.58, 0.15, 0.14, 90, 285, 0.045), paint="base")
    scene.part(
        curve([(0.62, 0.70), (0.66, 0.57), (0.76, 0.53), (0.84, 0.40), (0.90, 0.40), (0.86, 0.52), (0.82, 0.64), (0.70, 0.73)]),
        paint="base",
    )
    scene.part(turned(0.5, profile))
    scene.part(
        curve([(0.5 - neck, top + 0.01), (0.5 - neck * 0.7, top - 0.06), (0.5 + neck * 0.7, top - 0.06), (0.5 + neck, top + 0.01)]),
        paint="accent",
    )
    scene.part(ellipse(0.5, top - 0.09, 0.034, 0.034), paint="dark", light="ball")
    scene.gloss(curve([(0.37, 0.54), (0.40, 0.49), (0.42, 0.51), (0.39, 0.60)]))


def vase(scene: Scene, variant: int, k: float) -> None:
    profile = [
        [(0.16, 0.10), (0.28, 0.07), (0.52, 0.21), (0.82, 0.10)],
        [(0.18, 0.15), (0.45, 0.12), (0.82, 0.17)],
        [(0.14, 0.07), (0.34, 0.075), (0.46, 0.13), (0.66, 0.22), (0.82, 0.15)],
    ][variant]
    profile = [(y, r * k) for y, r in profile]
    top, rim = profile[0]
    scene.shadow(0.5, 0.85, 0.19)
    scene.part(turned(0.5, profile))
    scene.part(ellipse(0.5, top, rim, 0.22 * rim), paint="accent", light="flat")
    scene.part(ellipse(0.5, top + 0.004, rim * 0.82, 0.15 * rim), paint="dark", light="flat")
    scene.gloss(curve([(0.40, 0.56), (0.41, 0.48), (0.44, 0.47), (0.43, 0.60)]))


def bottle(scene: Scene, variant: int, k: float) -> None:
    shoulder, neck = [(0.36, 0.08), (0.30, 0.11), (0.42, 0.065)][variant]
    width = [0.15, 0.16, 0.165][variant] * k
    scene.shadow(0.5, 0.88, 0.18)
    scene.part(turned(0.5, [(0.22, neck), (shoulder - 0.07, neck), (shoulder + 0.05, width), (0.84, width)], tilt=0.18))
    scene.part(turned(0.5, [(0.76, width), (0.84, width)], tilt=0.18), paint="dark")
    scene.part(box(0.5 - neck - 0.015, 0.12, 0.5 + neck + 0.015, 0.235, 0.02), paint="dark")
    if variant == 1:
        scene.part(arc(0.5, 0.12, 0.07, 0.06, 180, 360, 0.026), paint="dark")
    scene.gloss(box(0.5 - width * 0.72, shoulder + 0.10, 0.5 - width * 0.55, 0.70, 0.012), strength=70)


def lamp(scene: Scene, variant: int, k: float) -> None:
    scene.shadow(0.5, 0.88, 0.20)
    if variant == 2:
        scene.part(turned(0.5, [(0.52, 0.04), (0.68, 0.12), (0.85, 0.10)]), paint="dark")
    else:
        scene.part(box(0.482, 0.50, 0.518, 0.85), paint=(WOOD, METAL)[variant])
    scene.part(ellipse(0.5, 0.86, 0.15, 0.035), paint=(WOOD, METAL, WOOD)[variant], light="ball")
    top, bottom = [(0.12, 0.27), (0.20, 0.23), (0.07, 0.26)][variant]
    shade = [(0.14, top * k), (0.50, bottom * k)] if variant < 2 else [(0.16, top), (0.24, 0.19 * k), (0.50, bottom * k)]
    scene.part(turned(0.5, shade, tilt=0.14))
    scene.part(ellipse(0.5, shade[0][0], shade[0][1], 0.14 * shade[0][1]), paint=(255, 244, 214), light="flat")


def armchair(scene: Scene, variant: int, k: float) -> None:
    half = 0.27 * k
    left, right = 0.5 - half, 0.5 + half
    scene.shadow(0.5, 0.89, 0.33)
    legs = [stroke([(x, 0.76), (x + lean, 0.885)], 0.032) for x, lean in ((left + 0.02, -0.02), (right - 0.02, 0.02))]
    scene.part(*legs, paint=WOOD)
    back: Shape = [
        box(left + 0.02, 0.16, right - 0.02, 0.70, 0.10),
        curve(mirror([(0.5 - 0.1, 0.14), (left + 0.04, 0.24), (left + 0.02, 0.50), (left + 0.04, 0.70)])),
        box(left - 0.01, 0.30, right + 0.01, 0.70, 0.05),
    ][variant]
    scene.part(back, light="down")
    scene.part(box(left + 0.02, 0.54, right - 0.02, 0.71, 0.045), light="down")
    scene.part(box(left - 0.02, 0.68, right + 0.02, 0.78, 0.03), paint="dark", light="down")
    top = (0.46, 0.48, 0.42)[variant]
    radius = (0.05, 0.055, 0.02)[variant]
    scene.part(box(left - 0.075, top, left + 0.035, 0.79, radius))
    scene.part(box(right - 0.035, top, right + 0.075, 0.79, radius))


def cushion(scene: Scene, variant: int, k: float) -> None:
    scene.shadow(0.5, 0.82, 0.30)
    if variant == 1:
        scene.part(ellipse(0.5, 0.51, 0.31 * k, 0.31 * k), light="ball")
        scene.part(ellipse(0.5, 0.51, 0.03, 0.03), paint="dark", light="ball")
        return
    w, h = [(0.30, 0.30), (0.0, 0.0), (0.36, 0.22)][variant]
    w, pinch = w * k, 0.028
    outline = [
        (0.5 - w, 0.52 - h),
        (0.5, 0.52 - h + pinch),
        (0.5 + w, 0.52 - h),
        (0.5 + w - pinch, 0.52),
        (0.5 + w, 0.52 + h),
        (0.5, 0.52 + h - pinch),
        (0.5 - w, 0.52 + h),
        (0.5 - w + pinch, 0.52),
    ]
    scene.part(curve(outline), paint="dark", light="flat")
    scene.part(curve([(0.5 + (x - 0.5) * 0.95, 0.52 + (y - 0.52) * 0.95) for x, y in outline]), light="ball")


def clock(scene: Scene, variant: int, k: float) -> None:
    radius = 0.345 * k
    scene.shadow(0.5, 0.89, 0.22)
    corners = np.radians(np.arange(8) * 45 + 22.5)
    body: Shape = [
        ellipse(0.5, 0.5, radius, radius),
        box(0.5 - radius, 0.5 - radius, 0.5 + radius, 0.5 + radius, 0.07),
        polygon([(float(0.5 + 1.06 * radius * np.cos(a)), float(0.5 + 1.06 * radius * np.sin(a))) for a in corners]),
    ][variant]
    scene.part(body, light="ball")
    face = 0.56 * radius
    scene.part(ellipse(0.5, 0.5, face, face), paint=WHITE, light="ball")
    ticks = [
        stroke([(float(0.5 + r * np.cos(a)), float(0.5 + r * np.sin(a))) for r in (face * 0.78, face * 0.88)], 0.011)
        for a in np.arange(12) * np.pi / 6
    ]
    scene.part(*ticks, paint="dark", light="flat")
    hour, minute = 2 * np.pi * (k * 7 % 1), 2 * np.pi * (k * 31 % 1)
    hands = [
        stroke([(0.5, 0.5), (float(0.5 + r * np.sin(a)), float(0.5 - r * np.cos(a)))], w)
        for a, r, w in ((hour, face * 0.48, 0.022), (minute, face * 0.7, 0.015))
    ]
    scene.part(*hands, ellipse(0.5, 0.5, 0.02, 0.02), paint="dark", light="flat")


def planter(scene: Scene, variant: int, k: float) -> None:
    scene.shadow(0.5, 0.87, 0.21)
    light, dark = LEAVES
    if variant == 0:
        blades = [(-0.24, 0.26), (-0.13, 0.14), (0.0, 0.08), (0.13, 0.15), (0.24, 0.28)]
        for n, (dx, top) in enumerate(blades):
            tip, root = (0.5 + dx, top), (0.5 + dx * 0.25, 0.56)
            scene.part(
                curve([tip, (root[0] - 0.045 + dx * 0.3, 0.40), root, (root[0] + 0.045 + dx * 0.3, 0.40)]), paint=(light, dark)[n % 2]
            )
    elif variant == 1:
        for n, (x, y, r) in enumerate([(0.38, 0.40, 0.12), (0.62, 0.40, 0.12), (0.50, 0.27, 0.13), (0.44, 0.45, 0.10), (0.57, 0.46, 0.10)]):
            scene.part(ellipse(x, y, r, r * 0.92), paint=(dark, light)[n % 2], light="ball")
    else:
        scene.part(box(0.42, 0.14, 0.58, 0.58, 0.08), box(0.28, 0.30, 0.36, 0.46, 0.04), box(0.30, 0.40, 0.46, 0.46, 0.03), paint=light)
        scene.part(box(0.64, 0.24, 0.71, 0.42, 0.035), box(0.55, 0.36, 0.70, 0.42, 0.03), paint=light)
    top, bottom = [(0.22, 0.15), (0.20, 0.20), (0.24, 0.13)][variant]
    scene.part(turned(0.5, [(0.54, top * k), (0.83, bottom * k)]))
    scene.part(box(0.5 - top * k - 0.015, 0.52, 0.5 + top * k + 0.015, 0.585, 0.015), paint="dark")
