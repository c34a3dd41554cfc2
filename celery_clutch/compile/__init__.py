"""From a plan to messages: pages, headers, the canvas, and what is sent."""
