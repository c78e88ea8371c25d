"""Chat templates in the manner of known models, for the tests: each uses other means of Jinja."""

from __future__ import annotations

CHATML = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

JINJA = {
    "chatml": CHATML,
    "a system text by default": (
        "{%- if messages[0]['role'] != 'system' -%}<|im_start|>system\nYou help.<|im_end|>\n{%- endif -%}" + CHATML
    ),
    "instructions in brackets": (  # the system text goes into the first question
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% endif %}"
        "{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}"
        "{% set said = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] if loop.first and system is defined "
        "else m['content'] %}"
        "{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "headers, a date, JSON": (
        "{{- bos_token }}{%- set ns = namespace(count=0) %}"
        "{{- '[date ' + strftime_now('%Y') + ']\\n' }}{{ {'tools': tools, 'é': [1, 2]} | tojson }}"
        "{%- for m in messages %}{% set ns.count = ns.count + 1 %}"
        "{{- '<|im_start|>' + m['role'] + ' ' + ns.count | string + '\\n\\n' + m['content'] | trim + '<|im_end|>' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"
    ),
    "generation blocks and breaks": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}Q: {{ m.content }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    ),
    "indented blocks": (
        "{% for m in messages %}\n    {% if m.role == 'user' %}\nQ: {{ m.content }}\n    {% else %}\n"
        "A: {{ m.content }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\nA:\n{% endif %}\n"
    ),
    "plain text": "{% for m in messages %}{{ m.role | title }}: {{ m.content }}\n{% endfor %}Assistant:",
}
