"""The words that the dashboards are written in: kinds of panels, and the PromQL that comes again and again.

Over Grafana's own builders, with what all our panels have in common: data source, legend, colours, size.
"""

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

S = 'survey="$survey", job=~"$job"'
OURS = f"on (job, instance) group by (job, instance) (last_over_time(stream_vae_build_info{{{S}}}[1d]))"
"""Behind `and`: the series without a survey, of our processes, also of those that do not answer now."""
WHO = "{{instance}} {{worker}}"

Query = tuple[str, str]
"""An expression, and its legend."""
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


def targets(panel: Any, queries: Sequence[Query], *, instant: bool = False, shape: Any = None) -> Any:
    """Give a panel its queries."""
    for number, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + number))
        query = query.instant() if instant else query.range()
        panel = panel.with_target(query.format(shape or PromQueryFormat.TIME_SERIES))
    return panel


def described(panel: Any, title: str, text: str, unit: str, limits: Sequence[tuple[float | None, str]]) -> Any:
    """Give a panel what all have."""
    steps = [model.Threshold(value=value, color=color) for value, color in limits]
    thresholds = dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
    source = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
    return panel.title(title).description(text).unit(unit).thresholds(thresholds).datasource(source)


def lines(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    wide: int = 12,
    stacked: bool = False,
    limit: float | None = None,
    least: float | None = 0,
    bars: bool = False,
) -> Any:
    """Curves over time; `limit` draws a red line."""
    panel = described(
        timeseries.Panel(),
        title,
        text,
        unit,
        [(None, "transparent" if limit else GREEN), *([(limit, RED)] if limit else [])],
    )
    legend = common.VizLegendOptions().show_legend(True).placement(options.LegendPlacement.RIGHT)
    legend = legend.display_mode(options.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"])
    tooltip = common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING)
    panel = targets(panel, queries).legend(legend).tooltip(tooltip).span(wide).height(7).line_width(1)
    panel = panel.fill_opacity(60 if stacked or bars else 8).show_points(options.VisibilityMode.NEVER)
    if least is not None:
        panel = panel.min(least)
    if bars:
        panel = panel.draw_style(options.GraphDrawStyle.BARS)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    if limit:
        style = common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.LINE_AND_AREA)
        panel = panel.thresholds_style(style)
    return panel


def number(
    title: str,
    text: str,
    unit: str,
    expression: str,
    *limits: tuple[float | None, str],
    wide: int = 3,
    legend: str = "",
    words: dict[str, tuple[str, str]] | None = None,
) -> Any:
    """One number, coloured by its limits; `words` stand for values."""
    panel = described(stat.Panel(), title, text, unit, limits or [(None, BLUE)])
    calculated = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel = targets(panel, [(expression, legend)], instant=True).reduce_options(calculated).span(wide).height(4)
    panel = (
        panel.no_value("-").color_mode(options.BigValueColorMode.BACKGROUND).graph_mode(options.BigValueGraphMode.NONE)
    )
    if legend:
        panel = panel.text_mode(options.BigValueTextMode.NAME)
    return panel.mappings([worded(words)]) if words else panel


def worded(words: dict[str, tuple[str, str]]) -> model.ValueMap:
    """Words and colours for values."""
    return model.ValueMap(
        options={
            value: model.ValueMappingResult(text=text, color=color, index=index)
            for index, (value, (text, color)) in enumerate(words.items())
        }
    )


def states(title: str, text: str, words: dict[str, tuple[str, str]], *queries: Query, wide: int = 12) -> Any:
    """Coloured bars over time, one a series."""
    limits = [(None, GREEN)]
    panel = targets(described(statetimeline.Panel(), title, text, "none", limits), queries)
    return panel.mappings([worded(words)]).span(wide).height(7).row_height(0.8)


def heat(title: str, text: str, bucket: str, *, wide: int = 12) -> Any:
    """A histogram's buckets over time."""
    expression = f"sum by (le) (increase({bucket}{{{S}}}[$__rate_interval]))"
    panel = described(heatmap.Panel(), title, text, "none", [(None, GREEN)])
    panel = targets(panel, [(expression, "{{le}}")], shape=PromQueryFormat.HEATMAP)
    return panel.span(wide).height(7)


def rows(
    title: str,
    text: str,
    *queries: Query,
    columns: dict[str, str],
    words: dict[str, tuple[str, str]] | None = None,
    wide: int = 12,
    height: int = 7,
) -> Any:
    """A table of now, with `columns` in their order, renamed; several queries are joined by what they share."""
    panel = described(table.Panel(), title, text, "short", [(None, GREEN)])
    panel = targets(panel, queries, instant=True, shape=PromQueryFormat.TABLE).span(wide).height(height)
    if len(queries) > 1:
        panel = panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    order = {"indexByName": {name: index for index, name in enumerate(columns)}, "renameByName": columns}
    keep = {"include": {"names": list(columns)}}
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="filterFieldsByName", options=keep))
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=order))
    if words:
        mapped = model.DynamicConfigValue(id_val="mappings", value=[worded(words)])
        coloured = model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background"})
        panel = panel.override_by_name(list(columns.values())[-1], [mapped, coloured])
    return panel


def variable(name: str, label: str, query: str, *, several: bool) -> Any:
    """A choice at the top of the page."""
    source = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
    made = dashboard.QueryVariable(name).label(label).query(query).datasource(source)
    made = made.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    if not several:
        return made
    chosen = model.VariableOption(selected=True, text="All", value="$__all")
    return made.multi(True).include_all(True).all_value(".*").current(chosen)


def page(uid: str, title: str, text: str, sections: dict[str, list[Any]]) -> model.Dashboard:
    """A dashboard of sections, each a row of panels that wrap."""
    made = dashboard.Dashboard(f"stream_vae: {title}").uid(f"stream-vae-{uid}").description(text)
    made = made.tags(["stream_vae"]).refresh("30s").time("now-6h", "now").timezone("utc").readonly()
    made = made.tooltip(model.DashboardCursorSync.CROSSHAIR)
    made = made.link(
        dashboard.DashboardLink("stream_vae")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags(["stream_vae"])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
    )
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    made = made.with_variable(
        variable("survey", "Survey", "label_values(stream_vae_build_info, survey)", several=False)
    )
    made = made.with_variable(
        variable("job", "Job", 'label_values(stream_vae_build_info{survey="$survey"}, job)', several=True)
    )
    for section, panels in sections.items():
        if section:
            made = made.with_row(dashboard.Row(section))
        for panel in panels:
            made = made.with_panel(panel)
    return made.build()


def rate(metric: str, by: str = "", more: str = "") -> str:
    """A counter's growth a second, all processes together."""
    of = f" by ({by})" if by else ""
    return f"sum{of} (rate({metric}{{{S}{more}}}[$__rate_interval]))"


def grown(metric: str, by: str = "", more: str = "") -> str:
    """A counter's growth between two points of the curve."""
    of = f" by ({by})" if by else ""
    return f"sum{of} (increase({metric}{{{S}{more}}}[$__rate_interval]))"


def total(metric: str, by: str = "", more: str = "") -> str:
    """A gauge, all processes together."""
    of = f" by ({by})" if by else ""
    return f"sum{of} ({metric}{{{S}{more}}})"
