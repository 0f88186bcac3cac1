"""A page to look at what a search found: queries, thumbnails, scores, and which are right where that is known.

One self-contained HTML file that asks nothing of the network; or the pictures alone, for another page.
Needs the extra `report` (Pillow and Jinja).
"""

from cnclip_client.report._page import html_report, image_ids, text_ids
from cnclip_client.report._pictures import Pictures
from cnclip_client.report._thumbnails import Thumbnail, thumbnails

__all__ = ["Pictures", "Thumbnail", "html_report", "image_ids", "text_ids", "thumbnails"]
