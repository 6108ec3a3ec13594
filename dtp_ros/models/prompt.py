"""A prompt that is rendered once: what stands before and after the instruction, and the instruction's own tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dtp_ros.errors import CheckpointError, ObservationError
from dtp_ros.models.checkpoint import read_json, require_file

_PLACE = "\N{OBJECT REPLACEMENT CHARACTER}instruction\N{OBJECT REPLACEMENT CHARACTER}"


def load_tokenizer(folder: Path) -> Any:
    """The text tokenizer of a checkpoint, with its chat template; raises CheckpointError."""
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_json(folder, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the tokenizer of {folder} cannot be read: {reason}") from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = read_json(folder, "chat_template.json").get("chat_template")
    return tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json of a checkpoint, without its padding and truncation; raises CheckpointError."""
    path = require_file(folder, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class PlainPrompt:
    """A prompt of plain text, tokenised as a whole: pieces may reach over the borders of the instruction.

    Special tokens that a user spells out are plain text here too, so that "<image>" cannot change the layout.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._plain = _without_added_tokens(tokenizer, special_only=True)

    def encode(self, before: str, instruction: str, after: str) -> tuple[list[int], list[int]]:
        """Ids of the whole prompt, and which of them overlap the instruction's characters (at least one).

        Raises ObservationError for an instruction of blanks alone, or of no Unicode text.
        """
        low, high = len(before), len(before) + len(instruction)
        try:
            encoding = self._plain.encode(f"{before}{instruction}{after}", add_special_tokens=False)
        except (UnicodeError, TypeError):
            raise ObservationError("the instruction holds characters that are not Unicode text") from None
        over = [i for i, (start, stop) in enumerate(encoding.offsets) if start < high and stop > low]
        if not instruction.strip() or not over:
            raise ObservationError(f"the instruction {instruction!r} has no tokens")
        return list(encoding.ids), over


class InstructionTemplate:
    """The rendered chat template, tokenised around the instruction.

    In the template the instruction stands between two special tokens, which no merge crosses: its tokens are exactly
    those of the rendered prompt that overlap its characters, whatever else the template holds. It is tokenised as
    plain text, so that "<|im_end|>" or an image placeholder typed by a user cannot change the layout.

    before, after: ids on either side, the image placeholder once for every image token.
    """

    def __init__(self, tokenizer: Any, image_token_id: int, image_tokens: int) -> None:
        content = [{"type": "image", "image": "camera"}, {"type": "text", "text": _PLACE}]
        messages = [{"role": "user", "content": content}]
        self.text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, place, after = self.text.partition(_PLACE)
        backend: Tokenizer = tokenizer.backend_tokenizer
        self._plain = _without_added_tokens(backend)
        self.before = [i for i in _encode(backend, before) for _ in range(image_tokens if i == image_token_id else 1)]
        self.after = _encode(backend, after)
        # A template that glues other characters to the instruction would move the borders of its tokens.
        probe = "pick up the cup"
        whole = _encode(backend, f"{before}{probe}{after}")
        if not place or whole != [*_encode(backend, before), *self.instruction(probe), *self.after]:
            raise CheckpointError("the chat template does not put the instruction between two special tokens")
        if self.before.count(image_token_id) != image_tokens or image_token_id in self.after:
            raise CheckpointError("the chat template does not put one image before the instruction")

    def instruction(self, instruction: str) -> list[int]:
        """Ids of an instruction, at least one; raises ObservationError."""
        try:
            ids = _encode(self._plain, instruction) if instruction.strip() else []
        except (UnicodeError, TypeError):
            raise ObservationError("the instruction holds characters that are not Unicode text") from None
        if not ids:
            raise ObservationError(f"the instruction {instruction!r} has no tokens")
        return ids


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _without_added_tokens(tokenizer: Tokenizer, *, special_only: bool = False) -> Tokenizer:
    """The same tokenizer, deaf to added tokens that are spelled out in the text, or only to the special ones."""
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if special_only and not token["special"]]
    return Tokenizer.from_str(json.dumps(raw))
