"""Makes chat_templates.json: conversations in chat templates of many kinds, as transformers writes them.

    pip install transformers==5.14.0 tokenizers==0.22.2 jinja2==3.1.6
    python tests/golden/make_chat_templates.py

Each case has the tokenizer (a folder of tokenizers/), the template, the messages, and what
apply_chat_template gives: a text and its ids, or the words with which the template refuses. The templates
follow the forms that public models use. The program ran with the versions above.
"""

# ruff: noqa: E501  Templates are written in long lines.

import json
from pathlib import Path

import jinja2
from transformers import AutoTokenizer

HERE = Path(__file__).parent
TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "eos-joined": "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + "
    "message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n"
    "{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set "
    "system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set "
    "system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') "
    "!= (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/"
    "assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = "
    "'<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = "
    "message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + "
    "eos_token }}{% endif %}{% endfor %}",
    "alpaca": """{% if messages[0]['role'] == 'system' -%}
{{ messages[0]['content'] }}
{%- else -%}
Below is an instruction that describes a task. Write a response that appropriately completes the request.
{%- endif %}

{% for message in messages %}
    {% if message['role'] == 'user' %}

### Instruction:
{{ message['content'] | trim }}
    {% elif message['role'] == 'assistant' %}

### Response:
{{ message['content'] | trim }}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}

### Response:
{% endif %}""",
    "vicuna": "{% set ns = namespace(system='A chat.') %}{% for message in messages if message.role == 'system' "
    "%}{% set ns.system = message.content %}{% endfor %}{{ ns.system }}{% for message in messages | "
    "rejectattr('role', 'equalto', 'system') %}{{ ' USER: ' if message.role == 'user' else ' ASSISTANT: ' }}{{ "
    "message.content }}{% if message.role != 'user' %}{{ eos_token }}{% endif %}{% endfor %}{% if "
    "add_generation_prompt %} ASSISTANT:{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == "
    "'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "spaces": "{% for message in messages %}{% if message['role'] == 'user' %}{{ ' ' }}{% endif %}{{ "
    "message['content'] }}{% if not loop.last %}{{ '  ' }}{% endif %}{% endfor %}{{ eos_token }}",
    "generation": "{%- for message in messages %}\n  {%- if message.role == 'assistant' %}\n<|a|>{% generation "
    "%}{{ message.content }}{{ eos_token }}{% endgeneration %}\n  {% else %}\n<|{{ message.role[0] }}|>{{ "
    "message.content }}\n  {% endif %}\n{%- endfor %}\n{% if add_generation_prompt %}<|a|>{% endif %}\n",
    "json": "{% for message in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{% if not "
    "message.content %}{% continue %}{% endif %}{{ message | tojson }}{{ message.content | tojson(indent=2) }}"
    "{{ messages | tojson(sort_keys=true, separators=(',', ':')) if loop.last }}{% endfor %}{{ tools is none }}"
    "{{ documents is none }}",
    "macro": """{%- macro turn(role, content, end=true) -%}
    <{{ role | upper }}>{{ content | replace('\\r', '') | trim }}{% if end %}{{ eos_token }}{% endif %}

{% endmacro -%}
{{ bos_token if bos_token is defined else '(none)' }}{{ strftime_now('today') }}{{ pad_token }}
{% for message in messages %}
{{- turn(message.role, message['content']) }}
{%- endfor %}
{{ turn('assistant', '', false) if add_generation_prompt }}""",
    "names": "{% for m in messages %}{% for key, value in m.items() %}{{ key }}={{ value | string | length }};"
    "{% endfor %}{{ '%02d' % loop.index }}{{ m.content[:5] ~ m.content[-3:] }}{{ m.content.split(' ') | join('_') "
    "}}{% endfor %}{{ unk_token }}{{ undefined_name }}",
}
TALKS = [
    [("user", "Hello!")],
    [
        ("system", "You are brief."),
        ("user", "What is 2 < 3 & 'x'?"),
        ("assistant", "True."),
        ("user", "Why?"),
    ],
    [
        ("user", "  Ein Gru\u00df,\n\n\u4e2d\u6587 \U0001f600\t "),
        ("assistant", " ok \n"),
        ("user", "<b>bold</b>\r\nnext"),
    ],
    [("user", "one"), ("user", "two <|endoftext|> </s>"), ("assistant", "")],
    [
        ("system", ""),
        ("user", "{{ messages }} {% raw %}"),
        ("assistant", "a\\nb"),
        ("user", ""),
        ("user", "e"),
    ],
]
TOKENIZERS = ["special_first", "roberta", "older_added"]


def main() -> None:
    cases = []
    for number, name in enumerate(TEMPLATES):
        folder = TOKENIZERS[number % len(TOKENIZERS)]
        tokenizer = AutoTokenizer.from_pretrained(HERE / "tokenizers" / folder)
        tokenizer.chat_template = TEMPLATES[name]
        for turn, talk in enumerate(TALKS):
            case = {"tokenizer": folder, "template": name, "messages": talk, "answering": turn != 3}
            messages = [{"role": role, "content": content} for role, content in talk]
            asked = {"add_generation_prompt": case["answering"]}
            try:
                case["text"] = tokenizer.apply_chat_template(messages, tokenize=False, **asked)
                case["ids"] = tokenizer.apply_chat_template(messages, **asked)["input_ids"]
            except jinja2.TemplateError as error:
                case["refused"] = str(error)
            cases.append(case)
    table = {"templates": TEMPLATES, "cases": cases}
    (HERE / "chat_templates.json").write_text(json.dumps(table, ensure_ascii=False), "utf-8")
    refused = sum("refused" in case for case in cases)
    print(f"{len(cases)} conversations, {refused} of them refused")


if __name__ == "__main__":
    main()
