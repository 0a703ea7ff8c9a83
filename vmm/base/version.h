/* Versions: ours, and the one whose API we answer as (what clients check before they talk to us).
 */
#pragma once

#define MAYFLY_VERSION      "0.1.0"
#define FIRECRACKER_VERSION "1.17.0"
