"""Charts for pages, as SVG that belongs to the page: it follows the page's colours, and shows a point's figures on demand.

Every chart is laid out twice, for a wide and for a narrow column, so that its text keeps its size. The style of the page shows the
one that fits. Colours are classes, whose meaning the page's style knows for light and dark.
"""
