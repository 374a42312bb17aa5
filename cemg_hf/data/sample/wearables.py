"""Silhouettes of things to wear and carry; each function draws one product on a scene in one of three shape variants."""

from __future__ import annotations

import numpy as np

from .drawing import METAL, WHITE, WOOD, Scene, arc, box, curve, ellipse, mirror, polygon, stroke, turned


def t_shirt(scene: Scene, variant: int, k: float) -> None:
    half, hem = 0.20 * k, 0.84
    scene.shadow(0.5, 0.89, 0.24)
    reach, drop = [(0.17, 0.42), (0.17, 0.42), (0.15, 0.74)][variant]
    left = [(0.41, 0.15), (0.5 - half - 0.02, 0.20), (0.5 - half - reach, drop - 0.04), (0.5 - half - reach + 0.09, drop + 0.02)]
    left += [(0.5 - half, 0.36), (0.5 - half - 0.005, hem)]
    sky = box(0, 0, 1, 0.152)
    if variant == 1:
        neck, collar = polygon([(0.43, 0.14), (0.57, 0.14), (0.5, 0.275)]), polygon([(0.405, 0.14), (0.595, 0.14), (0.5, 0.32)])
    else:
        neck, collar = ellipse(0.5, 0.145, 0.085, 0.06), ellipse(0.5, 0.145, 0.108, 0.085)
    scene.part(polygon(mirror(left)), light="down", holes=[neck])
    scene.part(collar, paint="dark", light="flat", holes=[neck, sky])
    cuffs = [stroke([left[2], left[3]], 0.022), stroke([(1 - left[2][0], left[2][1]), (1 - left[3][0], left[3][1])], 0.022)]
    scene.part(*cuffs, paint="dark", light="flat")


def dress(scene: Scene, variant: int, k: float) -> None:
    flare = (0.30, 0.20, 0.33)[variant] * k
    scene.shadow(0.5, 0.92, flare * 0.9)
    bodice = [(0.40, 0.10), (0.37, 0.22), (0.36, 0.30), (0.40, 0.44)]
    if variant == 2:
        scene.part(
            polygon([(0.40, 0.11), (0.24, 0.24), (0.30, 0.33), (0.40, 0.26)]),
            polygon([(0.60, 0.11), (0.76, 0.24), (0.70, 0.33), (0.60, 0.26)]),
        )
    neck = curve([(0.43, 0.07), (0.5, 0.24), (0.57, 0.07), (0.5, 0.04)])
    scene.part(polygon(mirror(bodice)), light="down", holes=[neck])
    skirt = [(0.40, 0.44), (0.5 - flare * 0.72, 0.66), (0.5 - flare, 0.88)]
    hem = [(0.5 + flare * float(t), 0.88 + 0.025 * float(1 - t * t)) for t in np.linspace(-1, 1, 12)]
    scene.part(polygon([*skirt, *hem, *[(1 - x, y) for x, y in reversed(skirt)]]))
    scene.part(box(0.385, 0.425, 0.615, 0.465, 0.01), paint="dark")


def sneaker(scene: Scene, variant: int, k: float) -> None:
    ankle = (0.40, 0.22, 0.44)[variant]
    top = 0.5 - (0.5 - ankle) * k
    scene.shadow(0.5, 0.80, 0.38)
    upper = [
        (0.14, 0.72),
        (0.13, 0.56),
        (0.15, top),
        (0.24, top - 0.01),
        (0.36, top + 0.01),
        (0.46, 0.50),
        (0.60, 0.57),
        (0.78, 0.60),
        (0.88, 0.68),
        (0.88, 0.73),
    ]
    scene.part(curve(upper), light="down")
    scene.part(curve([(0.68, 0.74), (0.70, 0.62), (0.79, 0.60), (0.89, 0.68), (0.89, 0.74)]), paint="dark", light="down")
    scene.part(curve([(0.13, 0.72), (0.125, 0.58), (0.19, 0.56), (0.22, 0.72)]), paint="dark", light="down")
    scene.part(ellipse(0.25, top, 0.105, 0.024), paint="dark", light="flat")
    scene.part(box(0.11, 0.715, 0.91, 0.79, 0.035), paint=WHITE, light="down")
    if variant < 2:
        throat = [(0.37 + 0.055 * n, top + 0.05 + (0.52 - top) * 0.27 * n) for n in range(4)]
        scene.part(*(stroke([(x - 0.045, y + 0.035), (x + 0.015, y + 0.005)], 0.02) for x, y in throat), paint=WHITE, light="flat")


def cap(scene: Scene, variant: int, k: float) -> None:
    scene.shadow(0.5, 0.76, 0.34)
    height = (0.25, 0.29, 0.20)[variant] * k
    if variant == 1:  # bobble hat
        scene.part(ellipse(0.5, 0.66 - height * 1.55, 0.075, 0.075), paint="accent", light="ball")
        scene.part(curve(mirror([(0.44, 0.66 - height * 1.40), (0.30, 0.66 - height), (0.26, 0.66)])), light="ball")
        scene.part(box(0.235, 0.60, 0.765, 0.73, 0.04), paint="dark", light="round")
        return
    if variant == 2:  # sun hat
        scene.part(ellipse(0.5, 0.64, 0.40, 0.10), light="down")
        scene.part(turned(0.5, [(0.62 - height * 1.35, 0.11), (0.62 - height * 1.2, 0.17), (0.62, 0.22)]), light="ball")
        scene.part(turned(0.5, [(0.55, 0.212), (0.61, 0.22)]), paint="dark")
        return
    scene.part(curve([(0.52, 0.61), (0.70, 0.57), (0.90, 0.66), (0.90, 0.71), (0.70, 0.68), (0.50, 0.71)]), paint="dark", light="down")
    scene.part(
        curve(
            [
                (0.14, 0.70),
                (0.15, 0.54),
                (0.26, 0.66 - height * 1.15),
                (0.44, 0.66 - height * 1.3),
                (0.62, 0.66 - height * 0.9),
                (0.70, 0.62),
                (0.66, 0.70),
                (0.40, 0.72),
            ]
        ),
        light="ball",
    )
    scene.part(ellipse(0.44, 0.66 - height * 1.32, 0.03, 0.018), paint="dark")


def tote(scene: Scene, variant: int, k: float) -> None:
    scene.shadow(0.5, 0.88, 0.28)
    top, bottom = [(0.24, 0.24), (0.29, 0.22), (0.20, 0.28)][variant]
    top, bottom = top * k, bottom * k
    scene.part(arc(0.5, 0.42, 0.13, (0.27, 0.20, 0.30)[variant], 180, 360, 0.03), paint="dark")
    scene.part(polygon([(0.5 - top, 0.40), (0.5 + top, 0.40), (0.5 + bottom, 0.86), (0.5 - bottom, 0.86)]), light="down")
    scene.part(box(0.5 - top, 0.395, 0.5 + top, 0.435, 0.01), paint="dark")
    if variant == 1:
        scene.part(box(0.40, 0.55, 0.60, 0.73, 0.02), paint="dark", light="down")
        scene.part(box(0.41, 0.575, 0.59, 0.72, 0.015), light="down")


def backpack(scene: Scene, variant: int, k: float) -> None:
    half = 0.23 * k
    scene.shadow(0.5, 0.89, 0.25)
    scene.part(arc(0.5, 0.17, 0.08, 0.07, 180, 360, 0.03), paint="dark")
    scene.part(box(0.5 - half - 0.05, 0.42, 0.5 + half + 0.05, 0.78, 0.06), paint="dark")
    radius = (0.18, 0.08, 0.12)[variant]
    scene.part(box(0.5 - half, 0.14, 0.5 + half, 0.88, radius))
    if variant == 1:
        scene.part(box(0.5 - half - 0.01, 0.13, 0.5 + half + 0.01, 0.42, 0.09))
        straps = [box(x - 0.022, 0.36, x + 0.022, 0.60, 0.015) for x in (0.40, 0.60)]
        scene.part(*straps, paint="dark")
    else:
        scene.part(box(0.5 - half * 0.75, 0.54, 0.5 + half * 0.75, 0.83, 0.05), paint="dark", light="down")
        scene.part(box(0.5 - half * 0.70, 0.58, 0.5 + half * 0.70, 0.815, 0.045), light="down")
    if variant == 2:
        scene.part(arc(0.5, 0.36, half * 0.72, 0.06, 180, 360, 0.016), paint="dark", light="flat")


def umbrella(scene: Scene, variant: int, k: float) -> None:
    half, crown = 0.38 * k, (0.13, 0.20, 0.09)[variant]
    scene.shadow(0.52, 0.93, 0.12, 0.022)
    scene.part(stroke([(0.5, crown - 0.03), (0.5, 0.84)], 0.018), paint=METAL)
    scene.part(stroke([(0.5, 0.74), (0.5, 0.86)], 0.034), arc(0.555, 0.86, 0.055, 0.055, 0, 180, 0.034), paint=WOOD)
    edge = 0.52
    angles = np.linspace(np.pi, 0, 30)
    dome = [(float(0.5 + half * np.cos(a)), float(edge - (edge - crown) * np.sin(a))) for a in angles]
    ribs = (6, 8, 4)[variant]
    t = np.linspace(0, 1, ribs * 8 + 1)
    scallops = [(float(0.5 + half * (1 - 2 * s)), float(edge - 0.035 * abs(np.sin(np.pi * ribs * s)))) for s in t]
    scene.part(polygon(dome + scallops), light="ball")
    seams = [0.5 + half * (1 - 2 * n / ribs) for n in range(1, ribs)]
    heights = np.linspace(0, 1, 12)
    lines = [
        stroke(
            [(float(0.5 + (x - 0.5) * np.sin(h * np.pi / 2)), float(edge - (edge - crown) * np.cos(h * np.pi / 2))) for h in heights], 0.008
        )
        for x in seams
    ]
    scene.part(*lines, paint="dark", light="flat")
