"""Chat templates written for the tests in the style of the common families, with what each must train.

Of each family: the template, the end that follows an answer, its special tokens, whether it takes a system turn, and
whether it strips white space from contents.
"""

# ruff: noqa: E501 - templates as people publish them

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    source: str
    end: str
    specials: tuple[str, ...]
    system: bool = True
    strips: bool = False
    variables: dict = field(default_factory=dict)


CHATML = """{% for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

CHATML_MARKED = """{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA2 = """{%- if messages[0]['role'] == 'system' %}
    {%- set rest = messages[1:] %}{% set preface = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{%- else %}
    {%- set rest = messages %}{% set preface = '' %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (preface if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""

LLAMA3 = """{%- for message in messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

LLAMA31 = """{{- bos_token }}
{%- if not date is defined %}{% set date = strftime_now('%d %b %Y') if strftime_now is defined else 'none' %}{% endif %}
{%- if tools is not none %}{{ 'tools' }}{% endif %}
{%- if messages[0].role == 'system' %}
    {%- set system, rest = messages[0].content | trim, messages[1:] %}
{%- else %}
    {%- set system, rest = '', messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in rest %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{- message.content | trim + '<|eot_id|>' }}{% endgeneration %}
    {%- else %}{{ message.content | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% set ns.system = message.content + '\\n\\n' %}{% continue %}{% endif %}
    {%- if message.role == 'user' %}{{ '[INST] ' + ns.system + message.content + '[/INST]' }}{% set ns.system = '' %}
    {%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}"""

GEMMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

PHI = """{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

ALPACA = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ message.content + '\\n\\n' }}
    {%- elif message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
    {%- else %}{{ '### Response:\\n' + message.content + eos_token + '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"""

VICUNA = """{{- bos_token }}
{%- if messages[0].role != 'system' %}{{ 'A chat. ' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ message.content + ' ' }}
    {%- elif message.role == 'user' %}{{ 'USER: ' + message.content + ' ASSISTANT:' }}
    {%- else %}{{ ' ' + message.content + eos_token }}{% endif %}
{%- endfor %}"""

COMMAND = """{{- bos_token }}
{%- set names = {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>', 'system': '<|SYSTEM_TOKEN|>'} %}
{%- for message in messages %}
    {{- '<|START_OF_TURN_TOKEN|>' + names[message.role] + message.content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

FALCON = """{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}{% if message.role == 'system' %}{{ message.content }}{% else %}{{ message.role | title + ': ' + message.content | replace('\\r\\n', '\\n') | trim }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"""

DEEPSEEK = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{ message['content'] }}
    {%- elif message['role'] == 'user' %}{{ '<\uff5cUser\uff5c>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<\uff5cAssistant\uff5c>' + content + '<\uff5cend\u2581of\u2581sentence\uff5c>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}{% endif %}"""

QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set thought, content = '', message.content %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TURNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
S = {"bos_token": "<s>", "eos_token": "</s>"}
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3_MARKS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}

FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>", TURNS),
    "chatml marked": Family(CHATML_MARKED, "<|im_end|>", TURNS),
    "llama2": Family(LLAMA2, " </s>", ("<s>", "</s>"), strips=True, variables=S),
    "llama3": Family(LLAMA3, "<|eot_id|>", HEADERS, strips=True, variables=LLAMA3_MARKS),
    "llama3.1 marked": Family(LLAMA31, "<|eot_id|>", HEADERS, strips=True, variables=LLAMA3_MARKS),
    "mistral": Family(MISTRAL, "</s>", ("<s>", "</s>"), strips=True, variables=S),
    "gemma": Family(GEMMA, "<end_of_turn>", ("<bos>", "<start_of_turn>", "<end_of_turn>"), system=False, strips=True,
                    variables={"bos_token": "<bos>", "eos_token": "<eos>"}),
    "phi": Family(PHI, "<|end|>", ("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
                  variables={"eos_token": "<|endoftext|>"}),
    "zephyr": Family(ZEPHYR, "</s>", ("<s>", "</s>"), variables=S),
    "alpaca": Family(ALPACA, "</s>", ("<s>", "</s>"), variables=S),
    "vicuna": Family(VICUNA, "</s>", ("<s>", "</s>"), variables=S),
    "command-r": Family(COMMAND, "<|END_OF_TURN_TOKEN|>",
                        ("<BOS>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
                        strips=True, variables={"bos_token": "<BOS>"}),
    "falcon": Family(FALCON, "", (), strips=True),
    "deepseek": Family(DEEPSEEK, "<\uff5cend\u2581of\u2581sentence\uff5c>",
                       ("<s>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"), variables=S),
}  # fmt: skip
