"""`cnclip-gateway`: features over HTTP in OpenAI's form, and a page to search pictures with.

It holds no model: what it is asked, it asks a `cnclip_client.Client`. Needs the extra `gateway`.
"""
