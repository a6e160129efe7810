"""A page on which pictures and clips are dropped to see what a detector finds, and an HTTP endpoint beside it.

    python tools/serve.py --weights runs/demo/best.pt
    python tools/serve.py --weights a.pt --weights b.pt --port 8000
    curl --data-binary @photo.jpg 'http://127.0.0.1:7860/api/detect?threshold=0.5'

On the page you choose among the --weights, move the threshold, and download the boxes as JSON. The endpoint's schema
is at /openapi.json; docs/deploying.md describes both. There are no accounts: with --host 0.0.0.0 everybody in the
network can use it. Requests have limits on bytes, pixels, frames and number.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError
from tools.runtime import cli

MIB = 1 << 20


def main(args: argparse.Namespace) -> None:
    import logging

    import cv2  # here, so that --help is there at once

    from detection.predictor import Predictor
    from tools.runtime.serving import LEAST_SCORE, Server
    from tools.runtime.serving_schema import Limits

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    cv2.setNumThreads(0)  # the reading threads are the parallelism
    predictors = {
        name: Predictor(path, args.device, LEAST_SCORE, args.overrides)
        for name, path in model_names(args.weights).items()
    }
    limits = Limits(
        image_bytes=args.max_image * MIB,
        clip_bytes=args.max_clip * MIB,
        pixels=args.max_pixels * 10**6,
        frames=args.max_frames,
        working=args.concurrency,
    )
    try:
        server = Server((args.host, args.port), predictors, limits)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {args.host} --port {args.port}: {error}: take another port or host") from error
    with server:
        print(f"open http://{args.host}:{server.server_port}/ in a browser; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


def model_names(weights: list[str]) -> dict[str, str]:
    """What the page calls each of the weights: run and file (demo/best), or the name of the zoo, never a whole path."""
    names: dict[str, str] = {}
    for one in weights:
        path = Path(one)
        file = path.stem if path.suffix in (".pt", ".pth") else path.name  # exported files differ in the end alone
        name = one if "://" in one else f"{path.resolve().parent.name}/{file}"
        number = 1
        while (key := name if number == 1 else f"{name} ({number})") in names:
            number += 1
        names[key] = one
    return names


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, device=True)
    add = parser.add_argument
    add(
        "--weights", required=True, action="append", metavar="W",
        help="last.pt or best.pt of a run, exported file, or name of the zoo; several times: the page offers them",
    )  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=7860, help="0: any free one (default: 7860)")
    add("--concurrency", type=cli.positive, default=1, metavar="N", help="requests that detect at a time (default: 1)")
    add("--max-image", type=cli.positive, default=32, metavar="MIB", help="of a picture's file (default: 32)")
    add("--max-clip", type=cli.positive, default=256, metavar="MIB", help="of a clip's file (default: 256)")
    add("--max-pixels", type=cli.positive, default=50, metavar="MILLIONS", help="of a picture (default: 50)")
    add("--max-frames", type=cli.positive, default=600, metavar="N", help="of a clip (default: 600)")
    cli.add_set(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
