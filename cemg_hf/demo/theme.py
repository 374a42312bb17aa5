"""Gradio's own controls in the colours of style.css. Fonts are those of the visitor's system: nothing is fetched."""

from __future__ import annotations

import gradio as gr

SANS = ("Inter", "ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "JetBrains Mono", "Menlo", "Consolas", "monospace")

COLOURS = {
    "body_background_fill": "paper",
    "body_text_color": "ink",
    "body_text_color_subdued": "soft",
    "background_fill_primary": "surface",
    "background_fill_secondary": "sunken",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "color_accent_soft": "accent-soft",
    "link_text_color": "accent",
    "link_text_color_hover": "accent",
    "link_text_color_active": "accent",
    "link_text_color_visited": "accent",
    "block_background_fill": "surface",
    "block_border_color": "line",
    "block_info_text_color": "soft",
    "block_label_background_fill": "surface",
    "block_label_text_color": "soft",
    "block_title_text_color": "ink",
    "input_background_fill": "surface",
    "input_background_fill_focus": "surface",
    "input_border_color": "line",
    "input_border_color_focus": "accent",
    "input_border_color_hover": "soft",
    "input_placeholder_color": "soft",
    "checkbox_background_color": "surface",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "soft",
    "checkbox_border_color_selected": "accent",
    "checkbox_border_color_focus": "accent",
    "checkbox_label_background_fill": "surface",
    "checkbox_label_background_fill_selected": "surface",
    "checkbox_label_border_color": "surface",
    "slider_color": "accent",
    "loader_color": "accent",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent",
    "button_primary_text_color": "accent-ink",
    "button_primary_border_color": "accent",
    "button_secondary_background_fill": "surface",
    "button_secondary_background_fill_hover": "sunken",
    "button_secondary_text_color": "ink",
    "button_secondary_border_color": "line",
    "accordion_text_color": "ink",
    "panel_background_fill": "surface",
    "panel_border_color": "line",
    "error_background_fill": "warn-soft",
    "error_border_color": "warn",
    "error_text_color": "warn",
    "error_icon_color": "warn",
    "stat_background_fill": "sunken",
}
"""Gradio's name of a colour -> ours, which is light or dark as the page is."""
CHECK = (
    "url(\"data:image/svg+xml,%3csvg viewBox='0 0 16 16' fill='white' xmlns='http://www.w3.org/2000/svg'%3e%3cpath d='M12.2 4.8a1 1 0 0 1 "
    "0 1.4l-5 5a1 1 0 0 1-1.4 0l-2-2a1 1 0 1 1 1.4-1.4l1.3 1.3 4.3-4.3a1 1 0 0 1 1.4 0z'/%3e%3c/svg%3e\")"
)


def theme() -> gr.themes.Base:
    """The theme of the demo."""
    colours = {name: f"var(--{colour})" for name, colour in COLOURS.items()}
    dark = {f"{name}_dark": colour for name, colour in colours.items()}
    base = gr.themes.Base(font=[gr.themes.Font(name) for name in SANS], font_mono=[gr.themes.Font(name) for name in MONO])
    return base.set(
        **colours,
        **dark,
        color_accent="var(--accent)",
        block_radius="14px",
        block_label_radius="10px",
        container_radius="14px",
        input_radius="11px",
        input_border_width="1px",
        input_padding="11px 13px",
        input_text_size="14.5px",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px var(--accent-soft)",
        input_shadow_focus_dark="0 0 0 3px var(--accent-soft)",
        block_title_text_size="13px",
        block_title_text_weight="580",
        block_label_text_size="12.5px",
        block_info_text_size="12.5px",
        button_large_radius="11px",
        button_medium_radius="11px",
        button_small_radius="10px",
        button_large_text_weight="580",
        button_large_text_size="14.5px",
        button_border_width="1px",
        checkbox_border_radius="6px",
        checkbox_label_padding="0",
        section_header_text_weight="580",
        checkbox_check=CHECK,
    )
