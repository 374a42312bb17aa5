"""The demo: a shop to click through, in which every recommendation says where it comes from. Needs `pip install "cemg-hf[demo]"`."""
