"""The server: OpenAI's API over one model. Start at `app`; `engine` decodes. Needs the extra `serve`; nothing outside
imports it.
"""
