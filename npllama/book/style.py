"""Colours that all pages share, in light and in dark; each pair of ink and ground is AA."""

COLOURS = """
:root { color-scheme: light dark; --ink: #1c2129; --soft: #555d6b; --paper: #fdfcf9;
  --line: #d8d4c9; --code: #f4f1ea; --link: #0b5394; --word: #8a1c5c; --string: #34651d;
  --number: #8a4b08; --name: #0b5394; --was: #6b5310; --mark: #b9d3c3; --hot: #b5430b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e4dd; --soft: #a9b0bd;
  --paper: #15171b; --line: #3a3e47; --code: #1d2026; --link: #8cbcf2; --word: #f09cc8;
  --string: #a8d08d; --number: #e9b872; --name: #8cbcf2; --was: #d6c07a;
  --mark: #2c4a3d; --hot: #ff9a62; } }
"""
