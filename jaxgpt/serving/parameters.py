"""Parameters of OpenAI's API, of vLLM and of llama.cpp that this server does not have, and when that matters.

docs/server.md lists all of them, and a test compares.
"""

from collections.abc import Mapping
from typing import Any

# What is accepted with any value, since no value of it changes the answer.
IGNORED = frozenset(
    (
        "add_special_tokens",
        "cache_prompt",
        "cache_salt",
        "id_slot",
        "metadata",
        "n_discard",
        "n_keep",
        "parallel_tool_calls",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "user",
    )
)

# What is accepted with these values only: they ask for what happens anyway. All others are refused by name.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "grammar": ("",),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora": ([],),
    "min_keep": (0, 1),
    "mirostat": (0,),
    "modalities": (["text"],),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "reasoning_effort": ("none",),
    "repeat_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_progress": (False,),
    "return_token_ids": (False,),
    "return_tokens": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "t_max_predict_ms": (0, -1),
    "timings_per_token": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_n_sigma": (-1, 0),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "xtc_probability": (0,),
}


# What stands in a message beside role and content is passed over, but for these where they say something.
SPEAKING = frozenset(("audio", "function_call", "tool_calls"))


def changes_nothing(name: str, value: Any) -> bool:
    """Whether a parameter that the server does not have may be passed over, with this value."""
    neutral = NEUTRAL.get(name, ())
    # In Python, True equals 1; in JSON it does not.
    same = [each for each in neutral if value == each and isinstance(value, bool) == isinstance(each, bool)]
    return name in IGNORED or bool(same)
