"""Layouts of LSST's alert packets on the wire, by schema id: which field comes when, and its Avro type.

Confluent-framed packets hold no schema, so tests that decode real ones need the writer's. These tables state the
order and the types of the fields, which the packets themselves confirm: each real one decodes to its last byte.
They carry no descriptions; those are in LSST's data products definition document (LSE-163).

In a table a name alone is a nullable float; `:` gives another type (`l` long, `i` int, `d` double, `b` boolean,
`s` string, `y` bytes, `f` float), and `!` after it one that is never null.
"""

import json
from itertools import combinations
from pathlib import Path

BANDS = "ugrizy"
SCHEMA_IDS = (701, 703, 900)  # 100 * major + minor

_TYPES = {"l": "long", "i": "int", "d": "double", "b": "boolean", "s": "string", "y": "bytes", "f": "float"}


def _per_band(fields: str) -> str:
    """Give the fields of one band after those of another; @ is the band."""
    return " ".join(fields.replace("@", band) for band in BANDS)


def _covariances(prefix: str, quantities: str) -> str:
    """Give the upper triangle of a covariance matrix, row by row."""
    return " ".join(f"{prefix}{a}_{prefix}{b}_Cov" for a, b in combinations(quantities.split(), 2))


def _flags(stem: str, suffixes: str) -> str:
    return " ".join([f"{stem}:b", *(f"{stem}_{suffix}:b" for suffix in suffixes.split())])


_WHERE_AND_WHEN = """diaSourceId:l! visit:l! detector:i! diaObjectId:l ssObjectId:l parentDiaSourceId:l
    midpointMjdTai:d! ra:d! raErr dec:d! decErr ra_dec_Cov x:f! xErr y:f! yErr"""
_APERTURE = f"apFlux apFluxErr {_flags('apFlux_flag', 'apertureTruncated')}"
_PSF_FLAGS = _flags("psfFlux_flag", "edge noGoodPixels")
_FORCED_FLAGS = _flags("forced_PsfFlux_flag", "edge noGoodPixels")
_SHAPE_FLAGS = _flags("shape_flag", "no_pixels not_contained parent_source")
_TRAIL = """trailFlux trailFluxErr trailRa:d trailRaErr trailDec:d trailDecErr trailLength trailLengthErr
    trailAngle trailAngleErr"""
_INJECTED = "injected injectedCenter injected_template injected_templateCenter"
_SEEN_PIXELS = "offimage saturated saturatedCenter suspect suspectCenter streak streakCenter"


def _dia_source_7(*, negative: str = "", dipole_fit: str = "") -> str:
    dipole = "MeanFlux FluxDiff Ra Dec Length Angle"
    return f"""{_WHERE_AND_WHEN} x_y_Cov centroid_flag:b {negative} {_APERTURE} snr
        psfFlux psfFluxErr psfRa:d psfRaErr psfDec:d psfDecErr {_covariances("psf", "Flux Ra Dec")}
        psfLnL psfChi2 psfNdata:i {_PSF_FLAGS}
        {_TRAIL} {_covariances("trail", "Flux Ra Dec Length Angle")} trailLnL trailChi2 trailNdata:i trail_flag_edge:b
        dipoleMeanFlux dipoleMeanFluxErr dipoleFluxDiff dipoleFluxDiffErr dipoleRa:d dipoleRaErr dipoleDec:d
        dipoleDecErr dipoleLength dipoleLengthErr dipoleAngle dipoleAngleErr {_covariances("dipole", dipole)}
        dipoleLnL dipoleChi2 dipoleNdata:i {_FORCED_FLAGS} snapDiffFlux snapDiffFluxErr fpBkgd fpBkgdErr
        ixx ixxErr iyy iyyErr ixy ixyErr {_covariances("", "ixx iyy ixy")} ixxPSF iyyPSF ixyPSF {_SHAPE_FLAGS}
        extendedness reliability band:s {dipole_fit}
        {_flags("pixelFlags", f"bad cr crCenter edge interpolated interpolatedCenter {_SEEN_PIXELS} {_INJECTED}")}"""


_DIA_SOURCE_9 = f"""{_WHERE_AND_WHEN} centroid_flag:b {_APERTURE} isNegative:b snr
    psfFlux psfFluxErr psfLnL psfChi2 psfNdata:i {_PSF_FLAGS} {_TRAIL} trailChi2 trailNdata:i trail_flag_edge:b
    dipoleMeanFlux dipoleMeanFluxErr dipoleFluxDiff dipoleFluxDiffErr dipoleLength dipoleAngle dipoleChi2 dipoleNdata:i
    scienceFlux scienceFluxErr {_FORCED_FLAGS} templateFlux templateFluxErr
    ixx iyy ixy ixxPSF iyyPSF ixyPSF {_SHAPE_FLAGS} extendedness reliability band:s isDipole:b dipoleFitAttempted:b
    timeProcessedMjdTai:d! timeWithdrawnMjdTai:d bboxSize:i
    {_flags("pixelFlags", "bad cr crCenter edge nodata nodataCenter interpolated interpolatedCenter")}
    {_flags("pixelFlags", f"{_SEEN_PIXELS} {_INJECTED}").removeprefix("pixelFlags:b ")} glint_trail:b"""

_FORCED_7 = """diaForcedSourceId:l! diaObjectId:l! ra:d! dec:d! visit:l! detector:i! psfFlux psfFluxErr
    midpointMjdTai:d! band:s"""
_FORCED_9 = f"""{_FORCED_7.replace("band:s", "")} scienceFlux scienceFluxErr band:s
    timeProcessedMjdTai:d! timeWithdrawnMjdTai:d"""

_NEARBY = " ".join(f"nearbyObj{n}:l nearbyObj{n}Dist nearbyObj{n}LnP" for n in (1, 2, 3))
_PHOTOMETRY_7 = """@_psfFluxMean @_psfFluxMeanErr @_psfFluxSigma @_psfFluxChi2 @_psfFluxNdata:i
    @_fpFluxMean @_fpFluxMeanErr @_fpFluxSigma"""
_DIA_OBJECT_7 = f"""diaObjectId:l! ra:d! raErr dec:d! decErr ra_dec_Cov radecMjdTai:d
    pmRa pmRaErr pmDec pmDecErr parallax parallaxErr {_covariances("", "pmRa pmDec parallax")}
    pmParallaxLnL pmParallaxChi2 pmParallaxNdata:i
    {_per_band(_PHOTOMETRY_7)} {_NEARBY} {_per_band("@_psfFluxErrMean")}"""
_DIA_OBJECT_9 = f"""diaObjectId:l! validityStartMjdTai:d! ra:d! raErr dec:d! decErr ra_dec_Cov
    {_per_band("@_psfFluxMean @_psfFluxMeanErr @_psfFluxSigma @_psfFluxNdata:i @_fpFluxMean @_fpFluxMeanErr")}
    {_per_band("@_scienceFluxMean @_scienceFluxMeanErr")}
    {_per_band("@_psfFluxMin @_psfFluxMax @_psfFluxMaxSlope @_psfFluxErrMean")}
    firstDiaSourceMjdTai:d lastDiaSourceMjdTai:d nDiaSources:i!"""

_SS_OBJECT_7 = f"""ssObjectId:l! discoverySubmissionDate:d firstObservationDate:d arc numObs:i
    MOID MOIDTrueAnomaly MOIDEclipticLongitude MOIDDeltaV
    {_per_band("@_H @_G12 @_HErr @_G12Err @_H_@_G12_Cov @_Chi2 @_Ndata:i")} medianExtendedness"""
_AXES = " ".join(f"{origin}centric{kind}{axis}" for origin in ("helio", "topo") for kind in ("", "V") for axis in "XYZ")
_SS_SOURCE_9 = f"""ssObjectId:l diaSourceId:l eclipticLambda:d eclipticBeta:d galacticL:d galacticB:d
    phaseAngle heliocentricDist topocentricDist predictedVMagnitude residualRa:d residualDec:d {_AXES}"""
_MPCORB_9 = "mpcDesignation:s ssObjectId:l mpcH epoch:d M:d peri:d node:d incl:d e:d a:d q:d t_p:d"

_CUTOUTS = "cutoutDifference:y cutoutScience:y cutoutTemplate:y"
# In an alert's table a type may also be a record's name; [] makes it an array.
_ALERT_7 = f"""alertId:l! diaSource:diaSource! prvDiaSources:diaSource[] prvDiaForcedSources:diaForcedSource[]
    prvDiaNondetectionLimits:diaNondetectionLimit[] diaObject:diaObject ssObject:ssObject {_CUTOUTS}"""
_ALERT_9 = f"""diaSourceId:l! observation_reason:s target_name:s diaSource:diaSource!
    prvDiaSources:diaSource[] prvDiaForcedSources:diaForcedSource[] diaObject:diaObject ssSource:ssSource MPCORB:MPCORB
    {_CUTOUTS}"""

_RECORDS_7 = {
    "alert": _ALERT_7,
    "diaForcedSource": _FORCED_7,
    "diaNondetectionLimit": "ccdVisitId:l! midpointMjdTai:d! band:s! diaNoise:f!",
    "diaObject": _DIA_OBJECT_7,
    "ssObject": _SS_OBJECT_7,
}
_LAYOUTS = {
    701: _RECORDS_7 | {"diaSource": _dia_source_7()},
    703: _RECORDS_7 | {"diaSource": _dia_source_7(negative="is_negative:b", dipole_fit="dipoleFitAttempted:b")},
    900: {
        "alert": _ALERT_9,
        "diaSource": _DIA_SOURCE_9,
        "diaForcedSource": _FORCED_9,
        "diaObject": _DIA_OBJECT_9,
        "ssSource": _SS_SOURCE_9,
        "MPCORB": _MPCORB_9,
    },
}


def lsst_schema(schema_id: int) -> dict:
    """Build the writer's Avro schema of a schema id on the wire; KeyError for one that is not in the tables."""
    records = _LAYOUTS[schema_id]
    namespace = f"lsst.v{schema_id // 100}_{schema_id % 100}"
    defined = set()  # Avro wants a record written out where it first comes, and by its name from then on

    def record(name: str) -> dict | str:
        if name in defined:
            return f"{namespace}.{name}"
        defined.add(name)
        fields = [field(*entry.partition(":")[::2]) for entry in records[name].split()]
        return {"type": "record", "name": name, "namespace": namespace, "fields": fields}

    def field(name: str, code: str) -> dict:
        kind, required = code.removesuffix("!") or "f", code.endswith("!")
        if kind in _TYPES:
            avro = _TYPES[kind]
        elif kind.endswith("[]"):
            avro = {"type": "array", "items": record(kind.removesuffix("[]"))}
        else:
            avro = record(kind)
        return {"name": name, "type": avro} if required else {"name": name, "type": ["null", avro], "default": None}

    return record("alert")


def write_lsst_schemas(folder: Path) -> None:
    """Write the schemas as a folder registry holds them, `<id>.avsc`."""
    for schema_id in SCHEMA_IDS:
        (folder / f"{schema_id}.avsc").write_text(json.dumps(lsst_schema(schema_id)), encoding="utf-8")
