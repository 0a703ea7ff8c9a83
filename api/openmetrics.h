/* What mayfly shows beyond Firecracker: metrics for scrapers, and where the time of a start went.
 */
#pragma once

#include "api/wire/json_writer.h"

/* OpenMetrics 1.0 text (https://openmetrics.io): every metric since the process began. */
#define OPENMETRICS_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"
void observe_metrics(struct json_writer *w);

/* A JSON object: microseconds from exec to each phase, null for those not reached. */
void observe_boot_timeline(struct json_writer *w);
