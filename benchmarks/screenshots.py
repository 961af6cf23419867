"""Pictures of the HTML page for the README and the tutorial, taken by Chromium.

Usage: `make demo`, then `python benchmarks/screenshots.py out/demo/report.html`. It needs Chromium, ChromeDriver,
selenium and Pillow. Run it again when the page changes. The pictures have 128 colours, which keeps them small.
"""

import argparse
import io
import shutil
import sys
from pathlib import Path

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
COLOURS = 128
WAIT_S = 20


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="the page that `aft report --html` or `make demo` wrote")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the pictures")
    parser.add_argument("--sample", type=int, default=408, help="the question whose drafts are shown")
    parser.add_argument("--width", type=int, default=1100, help="width of the window in pixels")
    return parser.parse_args()


def open_browser(width: int, height: int):
    """A headless Chromium with a light page.

    Raises:
        SystemExit: If Chromium or ChromeDriver is not installed.
    """
    from selenium import webdriver

    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not driver:
        sys.exit("Chromium and ChromeDriver are not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def save(picture: bytes, path: Path) -> None:
    """Write a PNG of few colours."""
    from PIL import Image

    small = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path}: {small.width} x {small.height} pixels, {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Take the picture of the first screen, and of one question with its drafts."""
    arguments = parse()
    from selenium.webdriver.support.wait import WebDriverWait

    browser = open_browser(arguments.width, 830)
    try:
        address = arguments.page.resolve().as_uri()
        browser.get(address)
        WebDriverWait(browser, WAIT_S).until(lambda page: page.find_elements("css selector", "#leaderboard table"))
        save(browser.get_screenshot_as_png(), arguments.out / "page-verdict.png")
        browser.get("about:blank")
        browser.set_window_size(arguments.width, 940)
        browser.get(f"{address}#sample-{arguments.sample}")
        WebDriverWait(browser, WAIT_S).until(lambda page: page.find_elements("css selector", "#samples .cards .card"))
        browser.execute_script("document.getElementById('samples').scrollIntoView()")
        save(browser.get_screenshot_as_png(), arguments.out / "page-sample.png")
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
