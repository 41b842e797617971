"""The explorer of a run from a local port, where files, texts and checkpoints are explained on demand."""

import base64
import binascii
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf

from perceiver.commands.inspect import (
    Run,
    check_has_samples,
    chosen_foil,
    chosen_samples,
    knocked_out_kinds,
    load_run,
    sink_criterion,
    window_samples,
)
from perceiver.data.collate import collate
from perceiver.data.files import TEXTS, UnreadableError
from perceiver.inspection.evaluation.knockout import knock_out
from perceiver.inspection.explorer.page import MAX_VALUES, explorer_page, page_event
from perceiver.inspection.writer import ExplanationWriter
from perceiver.runtime.errors import ConfigError, explain, is_user_error, one_line
from perceiver.runtime.summary import console
from perceiver.runtime.torch_settings import prepare_torch
from perceiver.tokenizer import SPECIAL
from perceiver.types import Batch

HOST = "127.0.0.1"
JSON_OVERHEAD = 2**16
"""Bytes of a request besides the file, in which the text must fit."""
MAX_DISCARDED = 2**26
"""Bytes of a request that is too large that are read, so that the client receives the answer."""
MAX_NAME = 100
"""Characters of a file name."""
SECONDS = 60
"""Limit for the transfer of each part of a request."""

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that cannot be answered."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Question:
    """What is to be explained.

    Attributes:
        checkpoint: of the run's folder; None for the one in use.
        sample: number of the run's sample whose text is replaced.
        text: another text; None for none.
        name, content: of a file; None for none.
    """

    checkpoint: str | None = None
    sample: int | None = None
    text: str | None = None
    name: str | None = None
    content: bytes | None = None

    @classmethod
    def parse(cls, body: bytes, max_bytes: int) -> "Question":
        """Read the JSON of a request: `checkpoint`, `sample`, `new_text`, and `file` with `name` and base64 `data`.

        Raises:
            RequestError: it is not valid, or the file is too large.
        """
        try:
            fields = json.loads(body)
            file = fields.get("file") or {}
            content = base64.b64decode(file["data"], validate=True) if file else None
            name = str(file["name"]) if file else None
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, "the request is not readable") from error
        checkpoint, sample, text = (fields.get(key) for key in ("checkpoint", "sample", "new_text"))
        for value, kind in ((checkpoint, str), (sample, int), (text, str)):
            if value is not None and type(value) is not kind:
                raise RequestError(HTTPStatus.BAD_REQUEST, f"{value!r} is not valid in the request")
        if content is not None and len(content) > max_bytes:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(max_bytes))
        return cls(checkpoint, sample, text, name, content)


def too_large(max_bytes: int) -> str:
    """Return the error of a file that is too large."""
    return f"the file is larger than serve_megabytes={max_bytes / 2**20:g}"


class LiveExplorer:
    """Explains what is asked for, one computation at a time, as a page; nothing of it is kept.

    Args:
        cfg: settings of the command.
        run: the run at the first checkpoint.
        batch: its samples.
        max_bytes: limit of a file.
    """

    def __init__(self, cfg: DictConfig, run: Run, batch: Batch, max_bytes: int) -> None:
        self.cfg = cfg
        self.run = run
        self.batch = batch
        self.max_bytes = max_bytes
        self._computation = threading.Lock()

    @property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints of the run's folder."""
        return sorted(path.stem for path in (self.run.finished.output_dir / "checkpoints").glob("*.ckpt"))

    def answer(self, question: Question) -> str:
        """Return the page of the answer.

        Raises:
            UnreadableError: the file or text cannot be read; the error names the file as the user does.
            ConfigError: there is no such checkpoint, or no such sample.
        """
        with self._computation:
            self._choose_checkpoint(question.checkpoint)
            batch, bases = self._samples(question)
            return self._page(batch, bases)

    def _choose_checkpoint(self, name: str | None) -> None:
        if name is None or name == self.run.finished.checkpoint.stem:
            return
        if name not in self.checkpoints:
            raise ConfigError(f"checkpoint={name}: the run has {', '.join(self.checkpoints) or 'no others'}")
        chosen = {"run": str(self.run.finished.output_dir), "checkpoint": name}
        self.run = load_run(
            OmegaConf.merge(self.cfg, chosen),  # type: ignore[arg-type]
            "run",
            "checkpoint",
            self.cfg.overrides,
        )

    def _samples(self, question: Question) -> tuple[Batch, list[int | None]]:
        """Return the samples to explain, and for each the number of the run's sample that it is, or is made of."""
        data, device = self.run.finished.parts.data, self.run.finished.parts.device
        files = {}
        if question.content is not None:
            files[safe_name(question.name or "")] = question.content
        if question.text is not None:
            files["the text.txt"] = question.text.encode(errors="backslashreplace")
        if not files:
            return self.batch.to(device), list(range(len(self.batch)))
        with TemporaryDirectory(prefix="perceiver-") as folder:
            paths = []
            for number, (name, content) in enumerate(files.items()):
                path = Path(folder) / str(number) / name
                path.parent.mkdir()
                path.write_bytes(content)
                paths.append(path)
            try:
                sample = data.dataset.read(*paths)
            except UnreadableError as error:
                text = str(error)
                for path in paths:
                    text = text.replace(str(path), path.name)
                console.print(text, soft_wrap=True, markup=False)
                raise UnreadableError(text) from error
        base = question.sample
        if question.content is None and base is not None and not self.batch.inputs.keys() <= sample.inputs.keys():
            if not 0 <= base < len(self.batch):
                raise ConfigError(f"sample={base}: the run has samples 0 to {len(self.batch) - 1}")
            row = self.batch.part(slice(base, base + 1)).to(device)
            text_inputs = {name: values[None].to(device) for name, values in sample.inputs.items()}
            masks = {name: mask for name, mask in row.masks.items() if name not in text_inputs}
            inputs = {name: text_inputs.get(name, values) for name, values in row.inputs.items()}
            return replace(row, inputs=inputs, masks=masks, targets={}, ids=[f"{row.ids[0]}, edited"]), [base]
        windows = window_samples(replace(sample, id=next(iter(files)).removesuffix(".txt")))
        return collate(windows).to(device), [None] * len(windows)

    def _page(self, batch: Batch, bases: Sequence[int | None]) -> str:
        run = self.run
        finished, explainer = run.finished, run.explainer
        explanation = explainer.explain(batch, foil=chosen_foil(self.cfg, [run]))
        writer = replace(
            ExplanationWriter.of_model(explainer, explanation, finished.parts.data.dataset.pieces),
            knock_outs=knock_out(explainer, explanation, knocked_out_kinds(self.cfg)),
            sink_criterion=sink_criterion(self.cfg, run),
        )
        max_megabytes = finished.config["attention"]["max_megabytes"]
        arrays = writer.event(step=finished.step, epoch=finished.epoch, max_megabytes=max_megabytes)
        event = page_event(arrays, max_values=MAX_VALUES, name=f"{run.name} · step {finished.step}")
        readers = finished.parts.data.dataset.readers.values()
        live = {
            "checkpoint": finished.checkpoint.stem,
            "checkpoints": self.checkpoints,
            "endings": sorted(finished.parts.data.dataset.file_endings),
            "max_bytes": self.max_bytes,
            "reads_text": any(reader.kind is TEXTS and reader.target is None for reader in readers),
            "bases": list(bases),
            "texts": _texts(writer.media.texts, len(batch)),
            "message": "" if bases == list(range(len(self.batch))) else f"explained {', '.join(batch.ids)}",
        }
        return explorer_page(run.name, writer.page_samples(), {run.name: [event]}, live=live)


def _texts(texts: Mapping[str, Sequence[Sequence[str]]], count: int) -> list[str]:
    """Return the text of each sample, to be edited; of several texts the first."""
    found = []
    for row in range(count):
        pieces = [piece for piece in next((of[row] for of in texts.values()), []) if piece not in SPECIAL]
        found.append(("" if any(" " in piece for piece in pieces) else " ").join(pieces).strip())
    return found


def safe_name(name: str) -> str:
    """Return the last part of a file name without control characters, shortened at its start."""
    last = name.replace("\\", "/").rpartition("/")[2]
    printable = "".join(character for character in last if character.isprintable())[-MAX_NAME:]
    while len(printable.encode(errors="replace")) > 2 * MAX_NAME:
        printable = printable[1:]
    return "file" if printable.strip(". ") == "" else printable.encode(errors="replace").decode()


class LiveServer(ThreadingHTTPServer):
    """Serves a `LiveExplorer` on the loopback to pages of its own origin only.

    Args:
        explorer: what is served.
        port: 0 for any free one.
    """

    daemon_threads = True

    def __init__(self, explorer: LiveExplorer, port: int) -> None:
        self.explorer = explorer
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    @property
    def hosts(self) -> set[str]:
        """The values of the header Host that are answered."""
        return {f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")}


class _Handler(BaseHTTPRequestHandler):
    """Answers `GET /` with the page of the run's samples, and `POST /explain` (`Question.parse`) with another page."""

    server: LiveServer
    timeout = SECONDS

    def do_GET(self) -> None:
        self._respond("/", lambda: Question())

    def do_POST(self) -> None:
        self._respond("/explain", self._question)

    def _respond(self, path: str, question: Any) -> None:
        explorer = self.server.explorer
        try:
            self._check_origin()
            if self.path != path:
                raise RequestError(HTTPStatus.NOT_FOUND, f"there is no page {self.path}")
            page = explorer.answer(question())
        except RequestError as error:
            self._send(error.status, *_failure(str(error)))
        except (ValueError, RuntimeError) as error:
            self._send(HTTPStatus.BAD_REQUEST, *_failure(one_line(error)))
        except Exception as error:
            if is_user_error(error):
                self._send(HTTPStatus.BAD_REQUEST, *_failure(explain(error)))
            else:
                log.warning("the request failed", exc_info=True)
                self._send(HTTPStatus.INTERNAL_SERVER_ERROR, *_failure(one_line(error)))
        else:
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(errors="backslashreplace"))

    def _check_origin(self) -> None:
        """Refuse requests of other pages, also of those that reach this server under a name of their own.

        Raises:
            RequestError: the request is one.
        """
        hosts = self.headers.get_all("Host") or []
        origins = self.headers.get_all("Origin") or []
        site = self.headers.get("Sec-Fetch-Site", "none")
        is_own = len(hosts) == 1 and hosts[0] in self.server.hosts and origins in ([], [f"http://{hosts[0]}"])
        if not is_own or site not in ("none", "same-origin"):
            raise RequestError(HTTPStatus.FORBIDDEN, "this server answers its own page only")

    def _question(self) -> Question:
        """Read the body.

        Raises:
            RequestError: it is not JSON, has no length, or is too large.
        """
        if self.headers.get_content_type() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the request is not JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "the request has no length")
        max_bytes = self.server.explorer.max_bytes
        if int(length) > max_bytes * 4 // 3 + JSON_OVERHEAD:
            left = min(int(length), MAX_DISCARDED)
            while left and (part := self.rfile.read(min(left, 2**16))):
                left -= len(part)
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(max_bytes))
        return Question.parse(self.rfile.read(int(length)), max_bytes)

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:
            log.debug("the browser closed the connection")

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _failure(sentence: str) -> tuple[str, bytes]:
    """Return kind and content of the answer for an error."""
    return "application/json", json.dumps({"error": sentence}).encode()


def serve(cfg: DictConfig) -> None:
    """Serve the explorer of a run until Ctrl-C.

    Raises:
        ConfigError: a setting is not valid, or the port is in use.
    """
    server = live_server(cfg)
    console.print(f"open {server.url} in a browser; Ctrl-C ends the server", soft_wrap=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("ended")
    finally:
        server.server_close()


def live_server(cfg: DictConfig) -> LiveServer:
    """Return the server of a run, which is not started yet; arguments and errors are those of `serve`."""
    if type(cfg.serve_port) is not int or not 0 <= cfg.serve_port < 2**16:
        raise ConfigError(f"serve_port={cfg.serve_port}: must be a port, 0 to 65535")
    if type(cfg.serve_megabytes) not in (int, float) or not cfg.serve_megabytes > 0:
        raise ConfigError(f"serve_megabytes={cfg.serve_megabytes}: must be a number above 0")
    if cfg.compare is not None or cfg.atlas or cfg.gallery:
        raise ConfigError("serve=true: shows one run; leave compare, atlas and gallery out")
    knocked_out_kinds(cfg)
    run = load_run(cfg, "run", "checkpoint", cfg.overrides)
    check_has_samples(cfg)
    prepare_torch(run.finished.config)
    _, batch, unreadable = chosen_samples(cfg, run)
    for problem in unreadable:
        console.print(problem, soft_wrap=True, markup=False)
    explorer = LiveExplorer(cfg, run, batch, int(cfg.serve_megabytes * 2**20))
    try:
        return LiveServer(explorer, cfg.serve_port)
    except OSError as error:
        raise ConfigError(f"serve_port={cfg.serve_port}: cannot be used ({error.strerror}); choose another") from error
