// naga's texts include it; what they use of it is in metal_stdlib.
#pragma once
